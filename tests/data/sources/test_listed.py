"""Tests of tables, Hugging Face data sets and tar shards, against a folder."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest

from mae_jax.data import few_shot, pipeline, sources, survey
from mae_jax.data.bad_images import BadImages
from mae_jax.utils.errors import ConfigError
from tests.data.conftest import take
from tests.helpers import image_formats

WRITERS = {
  "table": ("table", image_formats.write_tables),
  "saved": ("huggingface", image_formats.write_saved),
  "parquet": ("huggingface", image_formats.write_parquet),
  "tar": ("webdataset", image_formats.write_shards),
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield


@pytest.fixture(scope="module", params=WRITERS)
def written(request, photo_dir, tmp_path_factory):
  """A name in SOURCES, and data.path with the images of `photo_dir`."""
  source, write = WRITERS[request.param]
  out = tmp_path_factory.mktemp(request.param) / "data"
  write(photo_dir, out)
  return source, str(out)


@pytest.fixture
def both(any_settings, written):
  """Settings of the folder, and of the same images in another format."""
  folder = any_settings("folder")
  source, path = written
  return folder, dataclasses.replace(folder, source=source, path=path)


def train(data, rows=range(8), start_step=0, number=5):
  source = sources.open_source(data, "train")
  rows = np.array(rows)
  batches = pipeline.train_batches(
    source, data, seed=3, rows=rows, start_step=start_step
  )
  return take(batches, number)


def assert_same(left, right, keys=("image", "label", "readable")):
  assert len(left) == len(right)
  for one, other in zip(left, right, strict=True):
    for key in keys:
      np.testing.assert_array_equal(one[key], other[key])


def test_training_batches_are_those_of_the_folder(both):
  folder, data = both
  whole = train(folder)
  assert_same(train(data), whole)
  # A process of two that resumes in the second epoch, of 13 images.
  part = train(data, rows=range(4, 8), start_step=3, number=2)
  assert_same(part, [{k: v[4:] for k, v in each.items()} for each in whole[3:]])


@pytest.mark.parametrize("limit", [0, 3])
def test_evaluations_are_those_of_the_folder(both, limit):
  found = []
  for data in both:
    source = sources.open_source(data, "eval")
    batches = pipeline.eval_batches(
      source, data, batch_size=4, rows=np.arange(4), limit=limit
    )
    found.append(list(batches))
  assert_same(*found, keys=("image", "label", "mask", "id"))


def test_classes_and_labels_are_those_of_the_folder(both):
  folder, data = both
  for split in ("train", "eval"):
    one, other = (sources.open_source(each, split) for each in (folder, data))
    assert one.class_names == other.class_names == ("cat", "dog")
    np.testing.assert_array_equal(one.labels, other.labels)
    few, same = (few_shot.limit_per_class(x, 2, 0) for x in (one, other))
    np.testing.assert_array_equal(few.labels, same.labels)
    assert other.identity != one.identity
    assert other.identity == sources.open_source(data, split).identity
    names = {other.name(k) for k in range(other.num_examples)}
    assert len(names) == other.num_examples


def test_surveys_are_those_of_the_folder(both):
  one, other = (
    survey.survey_images(sources.open_source(data, "train"), data)
    for data in both
  )
  np.testing.assert_array_equal(one.sizes, other.sizes)
  np.testing.assert_array_equal(one.mean, other.mean)
  assert one.labels == other.labels


def test_held_out_images_and_a_share_are_refused(both):
  data = dataclasses.replace(both[1], holdout=0.3)
  with pytest.raises(ConfigError, match=r"has held-out images in .*holdout=0"):
    sources.open_source(data, "train")


def test_a_share_is_held_out(both):
  _, data = both
  inside = {
    "table": "train.csv", "saved": "train", "tar": "train",
    "parquet": "data/train-00000-of-00002.parquet",
  }  # fmt: skip
  kind = pathlib.Path(data.path).parent.name.rstrip("0123456789")
  path = f"{data.path}/{inside[kind]}"
  whole = sources.open_source(dataclasses.replace(data, path=path), "train")
  data = dataclasses.replace(data, path=path, holdout=0.3)
  parts = [sources.open_source(data, split) for split in ("train", "eval")]
  names = [part.name(k) for part in parts for k in range(part.num_examples)]
  assert sorted(names) == sorted(map(whole.name, range(whole.num_examples)))
  labels = [part.labels for part in parts]
  np.testing.assert_array_equal(
    sum(np.bincount(x, minlength=2) for x in labels),
    np.bincount(whole.labels, minlength=2),
  )
  assert parts[1].num_examples == {13: 4, 7: 2}[whole.num_examples]


@pytest.mark.slow
def test_a_damaged_image_keeps_its_place(photo_dir, any_settings, tmp_path):
  root = tmp_path / "photos"
  for split in ("train", "val"):
    for path, name in image_formats.images(photo_dir, split):
      folder = root / split / name
      folder.mkdir(parents=True, exist_ok=True)
      (folder / path.name).write_bytes(path.read_bytes())
  (root / "train" / "cat" / "02.jpg").write_bytes(b"no image")
  data = any_settings("folder", path=str(root))
  whole = train(data)
  bad = {
    "table": "02.jpg", "saved": "data-00000-of-00003.arrow:1",
    "parquet": "train-00000-of-00002.parquet:1", "tar": "shard-000.tar:all/001",
  }  # fmt: skip
  for kind, (source, write) in WRITERS.items():
    write(root, tmp_path / kind)
    other = dataclasses.replace(data, source=source, path=str(tmp_path / kind))
    found = BadImages(max_warnings=0)
    batches = pipeline.train_batches(
      sources.open_source(other, "train"),
      other,
      seed=3,
      rows=np.arange(8),
      unreadable=found,
    )
    assert_same(take(batches, 5), whole)
    (name,) = found.names
    assert name.endswith(bad[kind])
