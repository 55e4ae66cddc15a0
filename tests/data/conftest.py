"""Fixtures with real images: folders and a TFDS data set."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn import datasets

from mae_jax.config import DataConfig
from tests.helpers.tfds_data import SHARDS, TEST, TRAIN, prepare, shapes


@pytest.fixture(scope="session")
def prepared_dir(tmp_path_factory):
  """A data_dir with the data set "shapes", with several files per split."""
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
  """Encodes an image file; takes the options of Pillow's `save`."""
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
  """Makes a `DataConfig`, of the digits by default."""

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
    return DataConfig(**(values | changes))

  return make


@pytest.fixture
def any_settings(settings, photo_dir, prepared_dir):
  """Makes the `DataConfig` of a source by name, with batches of 8."""
  of_source = {
    "digits": {},
    "folder": {"path": str(photo_dir), "channels": 3, "image_size": (12, 10)},
    "tfds": {
      "name": "shapes",
      "data_dir": str(prepared_dir),
      "eval_split": "test",
      "channels": 3,
      "shuffle_buffer": 24,
      "record_shards": 4,
    },
  }

  def make(source, **changes):
    values = {"source": source, "batch_size": 8} | of_source[source]
    return settings(**(values | changes))

  return make


def take(batches, number):
  """Copies the next `number` batches."""
  return [
    {key: value.copy() for key, value in batch.items()}
    for batch in itertools.islice(batches, number)
  ]
