"""Real images in the forms that sources read: folders and a TFDS data set."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn import datasets

from mae_jax import config
from mae_jax import data as _  # noqa: F401  (hides accelerators from TensorFlow)

SHARDS = 3
TRAIN, TEST = 53, 22


class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Writes the examples it is given as TFDS data sets are written."""

  VERSION = tfds.core.Version("1.0.0")
  # For a class in a package, tfds 4.9.10 imports importlib_resources, which it
  # does not install (tensorflow/datasets#11212).
  __module__ = "prepared"

  def __init__(self, name, features, splits, **options):
    self.name = name
    self._features = features
    self._splits = splits
    super().__init__(**options)

  def _info(self):
    features = tfds.features.FeaturesDict(self._features)
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager):
    return {
      name: enumerate(examples) for name, examples in self._splits.items()
    }

  def _generate_examples(self):
    raise NotImplementedError


def prepare(directory, name, features, splits, num_shards=1, **options):
  """Prepares a data set of {split: examples} in a data_dir."""
  tfds.disable_progress_bar()
  builder = Prepared(name, features, splits, data_dir=directory, **options)
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(num_shards=num_shards)
  )


def shapes(number):
  """Images of a single level, which, like the label, tells the record."""
  return [
    {
      "image": np.full((6 + k % 3, 7, 3), 2 * k, np.uint8),
      "label": k,
      "file_name": f"{k}.png",
    }
    for k in range(number)
  ]


@pytest.fixture(scope="session")
def prepared_dir(tmp_path_factory):
  """A data_dir in which the data set "shapes" has several files a split."""
  directory = tmp_path_factory.mktemp("tfds")
  features = {
    "image": tfds.features.Image(shape=(None, None, 3)),
    "label": tfds.features.ClassLabel(num_classes=100),
    "file_name": tfds.features.Text(),
  }
  splits = {"train": shapes(TRAIN), "test": shapes(TEST)}
  prepare(directory, "shapes", features, splits, num_shards=SHARDS)
  return directory


@pytest.fixture(scope="session")
def photos():
  """Two real photographs, uint8 [427, 640, 3]."""
  return datasets.load_sample_images().images


def encode(image, **options):
  """The bytes of an image file; options as Pillow's save."""
  buffer = io.BytesIO()
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  image.save(buffer, **options)
  return buffer.getvalue()


@pytest.fixture(scope="session")
def photo_dir(tmp_path_factory, photos):
  """train/{cat,dog} with 13 JPEG and PNG files of several sizes, val with 5."""
  root = tmp_path_factory.mktemp("photos")
  for split, number in (("train", 13), ("val", 5)):
    for k in range(number):
      folder = root / split / ("cat", "dog")[k % 2]
      folder.mkdir(parents=True, exist_ok=True)
      image = Image.fromarray(photos[k % 2]).resize((40 + 3 * k, 34))
      image.save(folder / f"{k:02d}.{('jpg', 'png')[k % 3 == 0]}")
  return root


@pytest.fixture
def settings():
  """Makes a `Data` section, of the digits unless told otherwise."""

  def make(**changes):
    values = {
      "source": "digits",
      "batch_size": 32,
      "image_size": (8, 8),
      "crop_scale": (0.6, 1.0),
      "flip": True,
      "eval_crop": 1.0,
      "mean": (0.5,),
      "std": (0.5,),
      "channels": 1,
    }
    return config.Data(**(values | changes))

  return make


@pytest.fixture
def any_settings(settings, photo_dir, prepared_dir):
  """Makes the section for a source by name, with batches of 8."""
  of_source = {
    "digits": {},
    "folder": {"path": str(photo_dir), "channels": 3, "image_size": (12, 10)},
    "tfds": {
      "name": "shapes",
      "data_dir": str(prepared_dir),
      "eval_split": "test",
      "channels": 3,
      "shuffle_buffer": 24,
      "lanes": 4,
    },
  }

  def make(source, **changes):
    values = {"source": source, "batch_size": 8} | of_source[source]
    return settings(**(values | changes))

  return make


def take(batches, number):
  """The next `number` batches as copies."""
  return [
    {key: value.copy() for key, value in batch.items()}
    for batch in itertools.islice(batches, number)
  ]
