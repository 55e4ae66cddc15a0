"""Tests of TFDS data sets in ArrayRecord files, and of Croissant."""

from __future__ import annotations

import dataclasses
import json

import mlcroissant
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.utils import conversion_utils

from mae_jax.data import few_shot, pipeline, sources
from mae_jax.utils.errors import ConfigError
from tests.data.conftest import TRAIN, prepare, take
from tests.helpers.tfds_data import shapes


@pytest.fixture(scope="module")
def array_dir(tmp_path_factory):
  """A data_dir with "shapes" as ArrayRecord, in three training files."""
  directory = tmp_path_factory.mktemp("array")
  features = {
    "image": tfds.features.Image(shape=(None, None, 3)),
    "label": tfds.features.ClassLabel(num_classes=100),
    "file_name": tfds.features.Text(),
  }
  splits = {"train": shapes(TRAIN), "test": shapes(22)}
  prepare(
    directory, "shapes", features, splits, num_shards=3,
    file_format="array_record",
  )  # fmt: skip
  return str(directory)


@pytest.fixture
def data(any_settings, array_dir):
  return any_settings("tfds", data_dir=array_dir, crop_scale=(1.0, 1.0))


def train(data, number, rows=range(8), start_step=0):
  source = sources.open_source(data, "train")
  batches = pipeline.train_batches(
    source, data, seed=1, rows=np.array(rows), start_step=start_step
  )
  return take(batches, number)


def test_an_epoch_is_a_permutation_at_any_start(data):
  batches = train(data, 14)
  labels = np.concatenate([batch["label"] for batch in batches])
  for epoch in (labels[:TRAIN], labels[TRAIN : 2 * TRAIN]):
    assert sorted(epoch) == list(range(TRAIN))
  for batch in batches:  # the gray level of an image is twice its label
    assert (batch["image"].mean((1, 2, 3)) == 2 * batch["label"]).all()
  # The second of two processes resumes.
  (part,) = train(data, 1, rows=range(4, 8), start_step=9)
  np.testing.assert_array_equal(part["image"], batches[9]["image"][4:])


def test_slices_and_names(data):
  data = dataclasses.replace(
    data, train_split="train[:40]", eval_split="train[40:]"
  )
  parts = [sources.open_source(data, split) for split in ("train", "eval")]
  labels = [few_shot.read_labels(part) for part in parts]
  assert sorted(np.concatenate(labels)) == list(range(TRAIN))
  names = [part.name(k) for part in parts for k in range(part.num_examples)]
  assert len(set(names)) == TRAIN
  file, _, number = names[-1].rpartition(":")
  assert file.endswith("train.array_record-00002-of-00003")
  assert number.isdigit()
  few = few_shot.limit_per_class(parts[0], 1, 0)
  assert sorted(few_shot.read_labels(few)) == sorted(labels[0])


def test_the_identity_is_not_that_of_tfrecord(data, any_settings):
  found = [
    sources.open_source(each, "train").identity
    for each in (data, any_settings("tfds"))
  ]
  assert found[0] != found[1]


def croissant(root):
  """Writes images of two classes, and the Croissant JSON of them."""
  for name, level in (("cat", 0), ("dog", 100)):
    (root / "images" / name).mkdir(parents=True)
    for k in range(4):
      image = np.full((8, 9, 3), level + 20 * k, np.uint8)
      Image.fromarray(image).save(root / "images" / name / f"{k}.png")
  files = {"fileSet": {"@id": "files"}}
  fields = [
    ("picture", "sc:ImageObject", {"fileProperty": "content"}, {}),
    (
      "kind", "sc:Text", {"fileProperty": "fullpath"},
      {"transform": {"regex": "([a-z]+)/[^/]*$"}},
    ),
  ]  # fmt: skip
  vocabulary = {
    name: f"cr:{name}"
    for name in (
      "citeAs", "extract", "field", "fileProperty", "fileSet", "includes",
      "recordSet", "regex", "source", "transform",
    )
  }  # fmt: skip
  description = {
    "@context": {
      "@language": "en",
      "@vocab": "https://schema.org/",
      "sc": "https://schema.org/",
      "cr": "http://mlcommons.org/croissant/",
      "dct": "http://purl.org/dc/terms/",
      "conformsTo": "dct:conformsTo",
      "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
      **vocabulary,
    },
    "@type": "sc:Dataset",
    "conformsTo": "http://mlcommons.org/croissant/1.0",
    "name": "pets",
    "description": "Two classes.",
    "url": "https://example.org",
    "license": "https://creativecommons.org/licenses/by/4.0/",
    "version": "1.0.0",
    "distribution": [
      {
        "@type": "cr:FileObject",
        "@id": "folder",
        "name": "folder",
        "contentUrl": "images",
        "encodingFormat": "local/directory",
        "sha256": "x",
      },
      {
        "@type": "cr:FileSet",
        "@id": "files",
        "name": "files",
        "containedIn": {"@id": "folder"},
        "encodingFormat": "image/png",
        "includes": "**/*.png",
      },
    ],
    "recordSet": [
      {
        "@type": "cr:RecordSet",
        "@id": "pets",
        "name": "pets",
        "field": [
          {
            "@type": "cr:Field",
            "@id": f"pets/{name}",
            "name": name,
            "dataType": kind,
            "source": files | {"extract": extract} | more,
          }
          for name, kind, extract, more in fields
        ],
      }
    ],
  }
  path = root / "croissant.json"
  path.write_text(json.dumps(description))
  return path


class CroissantBuilder(tfds.dataset_builders.CroissantBuilder):
  """TFDS's builder, without Apache Beam, which needs an older NumPy."""

  def _split_generators(self, dl_manager):
    return {"default": self._generate_examples({})}

  def _generate_examples(self, filters):
    records = mlcroissant.Dataset(self.jsonld).records("pets")
    for number, record in enumerate(records):
      plain = {k.removeprefix("pets/"): v for k, v in record.items()}
      yield number, conversion_utils.to_tfds_value(plain, self.info.features)


# rdflib uses what it deprecates, and mlcroissant leaves files open.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_a_croissant_data_set(settings, tmp_path, file_format):
  path = croissant(tmp_path)
  builder = CroissantBuilder(
    jsonld=str(path), data_dir=tmp_path / "tfds", file_format=file_format
  )
  builder.download_and_prepare()
  assert set(builder.info.features) == {"picture", "kind"}
  data = settings(
    source="tfds", name="pets/pets", data_dir=str(tmp_path / "tfds"),
    train_split="default", eval_split="default[:5]", channels=3, batch_size=4,
  )  # fmt: skip
  assert sources.open_source(data, "train").class_names is None
  data = dataclasses.replace(data, label_column="kind")
  source = sources.open_source(data, "train")
  assert source.class_names == ("cat", "dog")
  assert few_shot.class_counts(source) == (4, 4)
  for batch in pipeline.eval_batches(
    source, data, batch_size=4, rows=np.arange(4)
  ):
    levels = batch["image"].mean((1, 2, 3))
    np.testing.assert_array_equal(levels >= 100, batch["label"])
  assert sources.open_source(data, "eval").num_examples == 5
  wrong = dataclasses.replace(data, image_column="photo")
  with pytest.raises(
    ConfigError, match=r"'photo' but picture, kind|kind, pict"
  ):
    sources.open_source(wrong, "train")


def test_nested_features(settings, tmp_path):
  nested = {
    "views": {
      "front": tfds.features.Image(shape=(4, 4, 3)),
      "back": tfds.features.Image(shape=(4, 4, 3)),
    },
    "number": tf.int64,
  }
  examples = [
    {
      "views": {
        "front": np.full((4, 4, 3), k, np.uint8),
        "back": np.full((4, 4, 3), 100 + k, np.uint8),
      },
      "number": 10 * k,
    }
    for k in range(12)
  ]
  prepare(tmp_path, "views", nested, {"train": examples})
  data = settings(
    source="tfds", name="views", data_dir=str(tmp_path), channels=3,
    eval_split="", label_column="number",
  )  # fmt: skip
  with pytest.raises(ConfigError, match=r"set --config.data.image_column"):
    sources.open_source(data, "train")
  data = dataclasses.replace(data, image_column="views/back", batch_size=12)
  source = sources.open_source(data, "train")
  assert source.class_names == tuple(str(10 * k) for k in range(12))
  (batch,) = pipeline.eval_batches(
    source, data, batch_size=12, rows=np.arange(12)
  )
  levels = batch["image"].mean((1, 2, 3))
  np.testing.assert_array_equal(levels, 100 + batch["label"])
