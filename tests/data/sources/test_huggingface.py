"""Tests of Hugging Face data sets on disk: columns, classes and bad files."""

from __future__ import annotations

import datasets
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from mae_jax.data import sources
from mae_jax.utils.errors import ConfigError
from tests.helpers import image_formats


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path / "cache" / "mae_jax"


@pytest.fixture
def opened(settings, tmp_path):
  def open_split(path="data", split="train", **changes):
    values = {"source": "huggingface", "path": str(tmp_path / path)}
    return sources.open_source(
      settings(**values | {"channels": 3} | changes), split
    )

  return open_split


def content(source):
  """Returns the bytes of each image."""
  result = []
  for k in range(source.num_examples):
    record = {name: x.numpy() for name, x in source.load(np.int64(k)).items()}
    with open(record["file"], "rb") as file:
      file.seek(record["offset"])
      result.append(file.read(record["length"]))
  return result


def write(path, images, **columns):
  """Writes a parquet file of images as bytes."""
  path.parent.mkdir(parents=True, exist_ok=True)
  rows = [image and {"bytes": image, "path": "x.jpg"} for image in images]
  kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
  table = pa.table({"image": pa.array(rows, kind)} | columns)
  parquet.write_table(table, path, row_group_size=2)


def test_a_single_data_set_after_a_filter(opened, photo_dir, tmp_path):
  whole = image_formats.data_set(photo_dir, "train")
  chosen = whole.select([5, 2, 9])
  chosen.save_to_disk(tmp_path / "data", num_shards=2)
  files = [path for path, _ in image_formats.images(photo_dir, "train")]
  source = opened()
  assert content(source) == [files[k].read_bytes() for k in (5, 2, 9)]
  assert source.name(2).endswith("data/data-00001-of-00002.arrow:0")
  assert opened(split="eval") is None
  # Shards of an earlier save stay, and do not count.
  chosen.select([0]).save_to_disk(tmp_path / "data", num_shards=1)
  assert opened().num_examples == 1


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_parquet_is_unpacked_once(opened, tmp_path, cache, compression):
  images = [bytes([k]) * (50 * k + 1) for k in range(7)]
  path = tmp_path / "data" / "train-00000-of-00001.parquet"
  table = pa.table({"picture": images, "label": ["b", "a", "b"] * 2 + ["a"]})
  path.parent.mkdir()
  parquet.write_table(table, path, compression=compression, row_group_size=3)
  source = opened()
  assert content(source) == images
  assert source.class_names == ("a", "b")
  (file,) = cache.glob("*.arrow")
  before = file.stat().st_mtime_ns
  assert content(opened()) == images
  assert file.stat().st_mtime_ns == before


def test_classes_of_numbers_and_missing_labels(opened, tmp_path):
  path = tmp_path / "data.parquet"
  write(path, [b"x", b"y", b"z"], label=[10, 9, 10])
  source = opened("data.parquet")
  assert source.class_names == ("9", "10")
  assert source.labels.tolist() == [1, 0, 1]
  write(path, [b"x", b"y", b"z"], label=[10, None, 10])
  with pytest.raises(
    ConfigError, match=r"data.parquet:1 has no label, as 1 of"
  ):
    opened("data.parquet")
  assert opened("data.parquet", label_column="none").class_names is None


def test_unlabeled_splits_have_the_label_minus_one(opened, tmp_path):
  rows = [{"image": {"bytes": b"x", "path": None}, "label": -1}] * 3
  features = image_formats.features()
  datasets.Dataset.from_list(rows, features=features).save_to_disk(
    tmp_path / "data"
  )
  assert opened().class_names is None


def test_an_empty_image_is_a_bad_one(opened, tmp_path):
  write(tmp_path / "data.parquet", [b"abc", None, b"defg"])
  assert content(opened("data.parquet")) == [b"abc", b"", b"defg"]


@pytest.mark.parametrize(
  ("columns", "changes", "words"),
  [
    ({"label": [[1], [2]]}, {}, "label .* has values of type list"),
    ({"label": [0.5, 1.5]}, {}, "label '0.5' is no class"),
    ({"mask": [b"1", b"2"]}, {}, "more than one column that may be meant"),
    ({"x": [1, 2]}, {"image_column": "x"}, "no column of image bytes but"),
    ({}, {"image_column": "photo"}, "image_column='photo' is no column"),
    ({}, {"label_column": "kind"}, "label_column='kind' is no column"),
  ],
)
def test_columns_that_cannot_be_used(opened, tmp_path, columns, changes, words):
  write(tmp_path / "data.parquet", [b"x", b"y"], **columns)
  with pytest.raises(ConfigError, match=words):
    opened("data.parquet", **changes)


def test_paths_without_bytes(opened, tmp_path):
  path = tmp_path / "data.parquet"
  kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
  rows = [{"bytes": None, "path": "x.jpg"}] * 2
  parquet.write_table(pa.table({"image": pa.array(rows, kind)}), path)
  with pytest.raises(ConfigError, match="has paths of images and not their"):
    opened("data.parquet")
  parquet.write_table(pa.table({"image": ["x.jpg"]}), path)
  with pytest.raises(ConfigError, match=r"data.source=table for paths"):
    opened("data.parquet")


@pytest.mark.parametrize("kind", ["saved", "parquet"])
@pytest.mark.parametrize("cut", [3, 2000])
def test_truncated_files_are_named(opened, photo_dir, tmp_path, kind, cut):
  getattr(image_formats, f"write_{kind}")(photo_dir, tmp_path / "data")
  pattern = {"saved": "train/*.arrow", "parquet": "data/train*"}[kind]
  path = sorted((tmp_path / "data").glob(pattern))[1]
  path.write_bytes(path.read_bytes()[:-cut])
  with pytest.raises(ConfigError, match=f"{path.name} cannot be read"):
    opened()


def test_shards_of_two_data_sets(opened, tmp_path):
  write(tmp_path / "data" / "train-0.parquet", [b"x"], label=["a"])
  write(tmp_path / "data" / "train-1.parquet", [b"x"])
  with pytest.raises(ConfigError, match="has other columns or classes than"):
    opened()
  write(tmp_path / "both" / "large" / "train-0.parquet", [b"x"])
  write(tmp_path / "both" / "small" / "train-0.parquet", [b"x"])
  with pytest.raises(ConfigError, match="in the folders 'large', 'small'"):
    opened("both")
