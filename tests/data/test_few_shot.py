"""Tests of few-shot subsets: exact size, balance, determinism."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from mae_jax.config import DataConfig
from mae_jax.data import few_shot, pipeline, sources
from mae_jax.utils.errors import ConfigError
from tests.helpers import tfds_data, tiny

LABELS = np.random.default_rng(0).permutation(
  np.repeat(np.arange(5), [40, 30, 20, 8, 2])
)


def choose(count: int, seed: int = 0) -> np.ndarray:
  return few_shot.choose_per_class(LABELS, count, np.random.default_rng(seed))


@pytest.mark.parametrize("count", [1, 2, 5, 9, 25, 60])
def test_each_class_has_the_given_number(count: int):
  chosen = choose(count)
  assert (np.diff(chosen) > 0).all()
  found = collections.Counter(LABELS[chosen].tolist())
  whole = collections.Counter(LABELS.tolist())
  assert found == {label: min(count, n) for label, n in whole.items()}


def test_zero_shots_takes_all():
  np.testing.assert_array_equal(choose(0), np.arange(100))


def test_subsets_are_deterministic_differ_by_seed_and_cover_all():
  np.testing.assert_array_equal(choose(2, 3), choose(2, 3))
  assert len({tuple(choose(2, seed)) for seed in range(20)}) == 20
  assert {each for seed in range(200) for each in choose(4, seed)} == set(
    range(100)
  )


def examples(source, data) -> list[tuple[int, bytes]]:
  batches = pipeline.eval_batches(source, data, batch_size=4, rows=np.arange(4))
  return [
    (int(label), image.tobytes())
    for batch in batches
    for label, image, mask in zip(
      batch["label"], batch["image"], batch["mask"], strict=True
    )
    if mask
  ]


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> DataConfig:
  """40 images in four files, in classes of 24, 12 and 4."""
  directory = tmp_path_factory.mktemp("tfds")
  random = np.random.default_rng(1)
  images = [
    {
      "image": random.integers(0, 256, (8, 8, 3), np.uint8),
      "label": 0 if k % 5 < 3 else (2 if k % 10 == 9 else 1),
    }
    for k in range(40)
  ]
  features = {
    "image": tfds.features.Image(shape=(8, 8, 3)),
    "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
  }
  tfds_data.prepare(
    directory, "few", features, {"train": images, "test": images[:4]}, 4
  )
  return tiny.config(
    data={
      "source": "tfds",
      "name": "few",
      "data_dir": str(directory),
      "eval_split": "test",
      "channels": 3,
    }
  ).data


def folder(tmp_path) -> DataConfig:
  for number in range(12):
    path = tmp_path / "train" / ("a" if number % 3 else "b") / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), 20 * number).save(path)
  return tiny.config(data={"source": "folder", "path": str(tmp_path)}).data


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["digits", "folder", "tfds"])
def test_limit_per_class(kind, tmp_path, records):
  data = {
    "digits": lambda: tiny.config().data,
    "folder": lambda: folder(tmp_path),
    "tfds": lambda: records,
  }[kind]()
  source = sources.open_source(data, "train")
  everything = collections.Counter(examples(source, data))
  whole = collections.Counter(label for label, _ in everything.elements())
  assert few_shot.labels_present(source).tolist() == sorted(whole)
  found = []
  for seed in (0, 1, 0):
    few = few_shot.limit_per_class(source, 3, seed)
    chosen = examples(few, data)
    assert few.num_examples == len(chosen)
    assert not collections.Counter(chosen) - everything
    assert collections.Counter(label for label, _ in chosen) == {
      label: min(3, n) for label, n in whole.items()
    }
    found.append(chosen)
  assert found[0] == found[2] != found[1]
  assert few_shot.limit_per_class(source, 0, 0) is source


def counting(source, read: list):
  """Wraps a source so that it records each parsed record."""

  def parse(serialized):
    record = source.parse(serialized)
    label = tf.numpy_function(
      lambda x: read.append(int(x)) or x, [record["label"]], tf.int64
    )
    return record | {"label": tf.ensure_shape(label, ())}

  return dataclasses.replace(source, parse=parse)


@pytest.mark.slow
def test_record_files_are_read_once_for_several_subsets(records):
  source, read = sources.open_source(records, "train"), []
  choices = [(2, 0), (3, 0), (0, 0), (2, 1), (2, 0)]
  found = few_shot.few_shot_subsets(counting(source, read), choices)
  assert len(read) == 40
  for (count, seed), few in zip(choices, found, strict=True):
    alone = few_shot.limit_per_class(source, count, seed)
    assert examples(few, records) == examples(alone, records)


def test_labels_present_stops_when_all_classes_were_seen(records):
  whole = sources.open_source(records, "train")
  many = dataclasses.replace(whole, pieces=whole.pieces * 50)
  read: list[int] = []
  assert few_shot.labels_present(counting(many, read)).tolist() == [0, 1, 2]
  assert len(read) < 2000 / 2  # some records are prefetched


def test_a_subset_of_record_files_can_be_trained_on(records):
  few = few_shot.limit_per_class(sources.open_source(records, "train"), 2, 0)
  batch = next(pipeline.train_batches(few, records, seed=0, rows=np.arange(32)))
  assert set(batch["label"]) == {0, 1, 2}
  assert batch["readable"].all()
  assert "few-train" in few.name(0)


def test_labels_are_needed(tmp_path):
  Image.new("L", (8, 8)).save(tmp_path / "a.png")
  data = tiny.config(data={"source": "folder", "path": str(tmp_path)}).data
  source = sources.open_source(data, "train")
  with pytest.raises(ConfigError, match=r"data.shots=5 limits .* no l"):
    few_shot.limit_per_class(source, 5, 0)


def test_a_damaged_record_file_is_named(records, tmp_path):
  source = sources.open_source(records, "train")
  piece = source.pieces[0]
  broken = tmp_path / "broken.tfrecord"
  with open(piece.path, "rb") as file:
    broken.write_bytes(file.read()[:-3])
  pieces = tuple(
    type(piece)(str(broken), each.skip, each.take) if each is piece else each
    for each in source.pieces
  )
  damaged = type(source)(
    pieces, source.class_names, source.parse, source.shuffled
  )
  with pytest.raises(ConfigError, match=r"broken.tfrecord is damag"):
    few_shot.limit_per_class(damaged, 2, 0)
