"""Tests of tar shards: patterns, labels and damaged files."""

from __future__ import annotations

import gzip
import io
import json

import numpy as np
import pytest
from PIL import Image

from mae_jax.data import sources
from mae_jax.data.sources.webdataset import expand_braces
from mae_jax.utils.errors import ConfigError
from tests.helpers.image_formats import write_tar


def picture(level=0):
  file = io.BytesIO()
  Image.fromarray(np.full((4, 4, 3), level, np.uint8)).save(file, "PNG")
  return file.getvalue()


@pytest.fixture
def shards(settings, tmp_path):
  """Opens a split of shards under a folder."""

  def open_split(split="train", path="", **changes):
    values = {"source": "webdataset", "path": f"{tmp_path}/{path}"}
    return sources.open_source(
      settings(**values | {"channels": 3} | changes), split
    )

  return open_split


def write(path, count=3, start=0, **parts):
  """Writes a shard whose examples have the given parts beside an image."""
  write_tar(
    path,
    [
      (f"{k:04d}", {"png": picture()} | parts)
      for k in range(start, start + count)
    ],
  )


@pytest.mark.parametrize(
  ("pattern", "names"),
  [
    ("a-{008..011}.tar", ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]),
    ("{x,y}-{1..2}", ["x-1", "x-2", "y-1", "y-2"]),
    ("plain.tar", ["plain.tar"]),
  ],
)
def test_braces(pattern, names):
  assert list(expand_braces(pattern)) == names


@pytest.mark.parametrize(
  ("path", "sizes"),
  [
    ("", (4, 3)),
    ("wds-{train,val}-{0..1}.tar", (4, 5)),
    ("wds-train-*.tar", (4, None)),
    ("wds-train-1.tar", (2, None)),
  ],
)
def test_patterns_and_splits(shards, tmp_path, path, sizes):
  for k in range(2):
    write(tmp_path / f"wds-train-{k}.tar", 2, 2 * k)
  write(tmp_path / "wds-val-0.tar", 3)
  if path.startswith("wds-{"):
    write(tmp_path / "wds-val-1.tar", 2, 3)
  found = [shards(split, path) for split in ("train", "eval")]
  assert tuple(each and each.num_examples for each in found) == sizes
  last = found[0].name(found[0].num_examples - 1)
  assert last == f"{tmp_path}/wds-train-1.tar:0003"


@pytest.mark.parametrize(
  ("parts", "changes", "names"),
  [
    ({"cls": b"7\n"}, {}, ("7",)),
    ({"cls": b"cat"}, {}, ("cat",)),
    ({"json": json.dumps({"label": "cat", "x": [1]}).encode()}, {}, ("cat",)),
    ({"json": b'{"kind": 3, "id": 9}'}, {"label_column": "kind"}, ("3",)),
    ({"cls": b"1", "txt": b"dog"}, {"label_column": "txt"}, ("dog",)),
    ({"cls": b"1"}, {"label_column": "none"}, None),
    ({"txt": b"a caption"}, {}, None),
    ({"jpg": b"", "cls": b"1"}, {"image_column": "png"}, ("1",)),
    ({"seg.png": b"", "cls": b"1"}, {}, ("1",)),
  ],
)
def test_labels(shards, tmp_path, parts, changes, names):
  write(tmp_path / "a.tar", **parts)
  source = shards(**changes)
  assert (source.num_examples, source.class_names) == (3, names)


@pytest.mark.parametrize(
  ("parts", "changes", "words"),
  [
    ({"jpg": b""}, {}, "a.tar:0000 has 2 image.*image_column to the suffix"),
    ({}, {"image_column": "webp"}, "a.tar:0000 has no image.* among png"),
    ({"json": b"{"}, {}, "label of .*a.tar:0000 cannot be read"),
    ({"cls": b"\xff"}, {}, "label of .*a.tar:0000 cannot be read"),
    ({"json": b'{"label": [1, 2]}'}, {}, r"has \[1, 2\] as its label"),
    ({"json": b'{"a": 1}'}, {"label_column": "b"}, "label_column='b' is no"),
  ],
)
def test_unclear_examples(shards, tmp_path, parts, changes, words):
  write(tmp_path / "a.tar", **parts)
  with pytest.raises(ConfigError, match=words):
    shards(**changes)


def test_labels_of_a_part_of_the_examples(shards, tmp_path):
  write(tmp_path / "a.tar", cls=b"1")
  write(tmp_path / "b.tar", 2)
  with pytest.raises(ConfigError, match=r"b.tar:0000 has no label, as 2 of 5"):
    shards()


def test_class_names(shards, tmp_path):
  write(tmp_path / "a.tar", cls=b"1")
  (tmp_path / "classnames.txt").write_text("cat\ndog\nbird\n")
  source = shards()
  assert source.class_names == ("cat", "dog", "bird")
  assert source.labels.tolist() == [1, 1, 1]
  write(tmp_path / "inside" / "a.tar", cls=b"2")
  assert shards(path="inside").class_names == source.class_names
  (tmp_path / "inside" / "a.tar").unlink()
  (tmp_path / "classnames.txt").write_text("cat\n")
  with pytest.raises(ConfigError, match="the label 1 of 1 class names"):
    shards()


@pytest.mark.parametrize("cut", [1, 600, 1536, 2048, 2600, 4700])
def test_a_truncated_tar_is_named(shards, tmp_path, cut):
  """Cuts in headers, in content and between two members."""
  write(tmp_path / "a.tar", 4, cls=b"1")
  content = (tmp_path / "a.tar").read_bytes()
  end = 8 * 1024  # eight members of a header and a block
  assert content[end:] == bytes(len(content) - end)
  (tmp_path / "a.tar").write_bytes(content[:end][:-cut])
  with pytest.raises(ConfigError, match=r"a.tar is no whole tar"):
    shards()


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 99])
def test_files_that_are_no_tars(shards, tmp_path, content):
  (tmp_path / "a.tar").write_bytes(content)
  with pytest.raises(ConfigError, match=r"a.tar is no whole tar"):
    shards()
  (tmp_path / "a.tar").write_bytes(gzip.compress(content))
  with pytest.raises(ConfigError, match="decompress it"):
    shards()


def test_missing_shards(shards, tmp_path):
  write(tmp_path / "a-0.tar")
  with pytest.raises(ConfigError, match=r"2 of 3 shards are missing, as a-1"):
    shards(path="a-{0..2}.tar")
  with pytest.raises(ConfigError, match="0 of 0 shards"):
    shards(path="b-*.tar")


def test_shards_in_a_bucket_are_refused(settings):
  data = settings(source="webdataset", path="gs://b/{0..9}.tar", channels=3)
  with pytest.raises(ConfigError, match=r"is in a bucket.*copy or mount it"):
    sources.open_source(data, "train")
