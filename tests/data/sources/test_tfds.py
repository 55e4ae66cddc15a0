"""Tests of data sets that TFDS prepared: splits, features and errors."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from mae_jax.data import sources
from mae_jax.utils.errors import ConfigError
from tests.data.conftest import SHARDS, TEST, TRAIN, prepare


def labels(source):
  result = []
  for piece in source.pieces:
    records = tf.data.TFRecordDataset(piece.path)
    for raw in records.skip(piece.skip).take(piece.take):
      record = source.parse(raw)
      image = tf.io.decode_png(record["image"]).numpy()
      assert (image == 2 * int(record["label"])).all()
      result.append(int(record["label"]))
  return result


def test_splits_are_read_whole(any_settings):
  data = any_settings("tfds")
  train = sources.open_source(data, "train")
  held_out = sources.open_source(data, "eval")
  assert len(train.pieces) == SHARDS
  assert (train.num_examples, held_out.num_examples) == (TRAIN, TEST)
  assert sorted(labels(train)) == list(range(TRAIN))
  assert sorted(labels(held_out)) == list(range(TEST))
  assert len(train.class_names) == 100


def test_slices_of_splits(any_settings):
  data = any_settings("tfds", train_split="train[:40]", eval_split="train[40:]")
  train = sources.open_source(data, "train")
  held_out = sources.open_source(data, "eval")
  assert (train.num_examples, held_out.num_examples) == (40, TRAIN - 40)
  assert sorted(labels(train) + labels(held_out)) == list(range(TRAIN))


@pytest.mark.parametrize("split", ["validation", "train[", "test+no"])
def test_an_unknown_split_lists_the_known_ones(any_settings, split):
  data = any_settings("tfds", eval_split=split)
  with pytest.raises(ConfigError, match=r"is not a split of") as error:
    sources.open_source(data, "eval")
  assert f"data.eval_split={split!r}" in str(error.value)
  assert f"train ({TRAIN} examples), test ({TEST}" in str(error.value)


def test_empty_slice(any_settings):
  data = any_settings("tfds", train_split="train[:0]")
  with pytest.raises(ConfigError, match=r"has no example: choose"):
    sources.open_source(data, "train")


@pytest.mark.parametrize("name", ["imagenet2012", "no_such_thing", "a/b:9.9.9"])
def test_a_data_set_that_is_not_prepared(any_settings, tmp_path, name):
  data = any_settings("tfds", name=name, data_dir=str(tmp_path))
  with pytest.raises(ConfigError, match="is not prepared") as error:
    sources.open_source(data, "train")
  assert f"data.name={name!r}" in str(error.value)
  assert f"`tfds build {name} --data_dir={tmp_path}`" in str(error.value)
  assert not list(tmp_path.iterdir())


def test_no_name(any_settings):
  with pytest.raises(ConfigError, match=r"data\.name is empty: set"):
    sources.open_source(any_settings("tfds", name=""), "train")


def test_images_without_labels(any_settings, tmp_path):
  image = np.zeros((4, 4, 3), np.uint8)
  features = {"image": tfds.features.Image(shape=(4, 4, 3))}
  prepare(tmp_path, "bare", features, {"train": [{"image": image}]})
  data = any_settings("tfds", name="bare", data_dir=str(tmp_path))
  source = sources.open_source(data, "train")
  assert source.class_names is None
  raw = next(iter(tf.data.TFRecordDataset(source.pieces[0].path)))
  assert int(source.parse(raw)["label"]) == -1


def test_a_data_set_without_images(any_settings, tmp_path):
  features = {"text": tfds.features.Text()}
  prepare(tmp_path, "words", features, {"train": [{"text": "word"}]})
  data = any_settings("tfds", name="words", data_dir=str(tmp_path))
  with pytest.raises(ConfigError, match="image feature 'image' but text"):
    sources.open_source(data, "train")


def test_the_advice_about_another_file_format_works(any_settings, tmp_path):
  features = {"image": tfds.features.Image(shape=(4, 4, 3))}
  examples = {"train": [{"image": np.zeros((4, 4, 3), np.uint8)}]}
  for directory, kind in (("data", "riegeli"), ("OTHER", "array_record")):
    where = tmp_path / directory
    if kind == "riegeli":  # its package is not installed: only its name counts
      prepare(where, "demo", features, examples, file_format="array_record")
      info = where / "demo" / "1.0.0" / "dataset_info.json"
      info.write_text(info.read_text().replace("array_record", kind))
    else:
      prepare(where, "demo", features, examples, file_format=kind)
  data = any_settings("tfds", name="demo", data_dir=str(tmp_path / "data"))
  with pytest.raises(ConfigError, match="as riegeli, and array_record") as e:
    sources.open_source(data, "train")
  text = str(e.value)
  assert "`tfds build demo --data_dir=OTHER --file_format=array_record`" in text
  assert text.endswith("set --config.data.data_dir=OTHER")
  data = any_settings("tfds", name="demo", data_dir=str(tmp_path / "OTHER"))
  assert sources.open_source(data, "train").num_examples == 1
