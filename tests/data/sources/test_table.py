"""Tests of tables of paths: headers, splits, labels and hostile files."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from mae_jax.data import sources
from mae_jax.utils.errors import ConfigError


@pytest.fixture
def table(settings, tmp_path):
  """Writes a table beside images, and opens a split of it."""
  for name in ("a.png", "b.png", "c, d.png", "é.png"):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name)

  def open_split(content, split="train", name="list.csv", **changes):
    if isinstance(content, str):
      content = content.encode()
    (tmp_path / name).write_bytes(content)
    values = {"source": "table", "path": str(tmp_path / name), "channels": 3}
    return sources.open_source(settings(**values | changes), split)

  return open_split


def names(source):
  return [source.name(k).rpartition("/")[2] for k in range(source.num_examples)]


@pytest.mark.parametrize(
  "text",
  [
    "image,label\na.png,x\nb.png,y\n",
    "\ufeffPath;Class\r\na.png;x\r\nb.png;y\r\n",
    "id\tFile Name\ttarget\n7\t a.png\tx \n\n8\tb.png\ty",
    'filename,size,category\n"a.png","1,2",x\n"b.png",3,y\n',
  ],
)
def test_headers_and_dialects(table, text):
  source = table(text)
  assert names(source) == ["a.png", "b.png"]
  assert source.class_names == ("x", "y")
  assert source.labels.tolist() == [0, 1]


def test_names_with_commas_and_accents(table):
  source = table('image\n"c, d.png"\né.png\n')
  assert names(source) == ["c, d.png", "é.png"]
  assert source.class_names is None


def test_numbers_are_sorted_by_value(table):
  source = table("image,label\na.png,10\nb.png,9\n")
  assert source.class_names == ("9", "10")
  assert source.labels.tolist() == [1, 0]


def test_metadata_of_an_image_folder(table, tmp_path):
  """The layout of `datasets`' ImageFolder: metadata.csv beside images."""
  table("file_name,label\na.png,x\nb.png,y\n", name="metadata.csv")
  source = table("", name="notes.txt", path=str(tmp_path))
  assert names(source) == ["a.png", "b.png"]
  assert table("", "eval", name="notes.txt", path=str(tmp_path)) is None


def test_a_column_of_splits(table):
  text = "image,label,split\na.png,x,train\nb.png,y,train\né.png,x,val\n"
  text += '"c, d.png",y,test\n'
  assert names(table(text)) == ["a.png", "b.png"]
  assert names(table(text, "eval")) == ["é.png"]
  assert names(table(text, "eval", eval_split="test")) == ["c, d.png"]
  with pytest.raises(ConfigError, match="eval_split='best' is in no name of"):
    table(text, "eval", eval_split="best")


def test_columns_that_are_set(table):
  text = "photo,image,label,kind\na.png,1,x,v\nb.png,2,y,w\n"
  source = table(text, image_column="photo", label_column="kind")
  assert names(source) == ["a.png", "b.png"]
  assert source.class_names == ("v", "w")
  bare = table(text, image_column="photo", label_column="none")
  assert bare.class_names is None


def test_other_data_have_another_identity(table):
  found = [
    table(text).identity
    for text in (
      "image,label\na.png,x\nb.png,y\n",
      "image,label\nb.png,y\na.png,x\n",
      "image,label\na.png,y\nb.png,x\n",
      "image,label\na.png,x\nb.png,z\n",
      "image\na.png\nb.png\n",
    )
  ]
  assert len({each["names"] for each in found}) == len(found)


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("", "has no column of paths among"),
    ("image,label\n", "has no image"),
    ("a.png,x\nb.png,y\n", "no column of paths among 'a.png', 'x': begin"),
    ("image,path\na.png,b.png\n", "more than one column that may be meant"),
    ("image,image\na.png,b.png\n", "more than one column that may be meant"),
    ("image,label\na.png,x\n,y\n", r"list.csv:3 has no path in the column"),
    ("image,label\na.png,x\nb.png,\n", r"list.csv:3 has no label, as 1 of 2"),
    ("image,label\na.png,x,1\n", r"list.csv:2 has 3 cells and the header 2"),
    ('image,label\n"a.png,x\n', r"list.csv:\d is no row of a table"),
    (b"image\n\xff\xfea\n", "is not UTF-8"),
    ("image,label\na.png,x\na.png,y\n", "'x' in .*csv:2 and 'y' in .*csv:3"),
    ("image\nno.png\nneither.png\na.png\n", "2 of 3 files .* do not exist"),
    ("image,label\na.png,0.5\nb.png,1\n", "label '0.5' is no class"),
    ("image,split\na.png,val\n", "has held-out images only"),
    ("image\n\0\n", "has no path in the column"),
  ],
)
def test_a_malformed_table_is_one_error(table, text, words):
  with pytest.raises(ConfigError, match=words):
    table(text)


def test_an_unknown_label_of_evaluation(table, tmp_path):
  table("image,label\na.png,cat\nb.png,dog\n", name="train.csv")
  table("image,label\né.png,Cat\n", name="val.csv", path=str(tmp_path))
  with pytest.raises(ConfigError, match=r"has the label 'Cat'.*differ only in"):
    table("", "eval", name="notes.txt", path=str(tmp_path))


def test_repeated_rows(table, capsys):
  text = "image,label\na.png,x\na.png,x\nb.png,x\n"
  assert table(text).num_examples == 3
  assert "1 rows of" in capsys.readouterr().err
  with pytest.raises(ConfigError, match="may put on both sides"):
    table(text, holdout=0.4)


def test_some_missing_files_are_a_warning(table, capsys):
  assert table("image\na.png\nno.png\nb.png\n").num_examples == 3
  assert "1 of 3 files that were looked for" in capsys.readouterr().err


def test_two_tables_for_one_split(table, tmp_path):
  table("image\na.png\n", name="one.csv")
  with pytest.raises(ConfigError, match=r"more than one table.*one.csv, two"):
    table("image\na.png\n", name="two.csv", path=str(tmp_path))


def test_parquet(table, tmp_path):
  def write(**values):
    parquet.write_table(pa.table(values), tmp_path / "list.parquet")
    content = (tmp_path / "list.parquet").read_bytes()
    return table(content, name="list.parquet")

  source = write(path=["a.png", "b.png"], label=[3, 1], other=[[1], [2, 3]])
  assert names(source) == ["a.png", "b.png"]
  assert source.class_names == ("1", "3")
  for values, words in (
    ({"path": ["a.png"], "label": [["x", "y"]]}, "of type list"),
    ({"path": ["a.png", None]}, r"list.parquet:2 has no path"),
    ({"image": [b"bytes"]}, "data.source=huggingface"),
  ):
    with pytest.raises(ConfigError, match=words):
      write(**values)
  with pytest.raises(ConfigError, match="cannot be read"):
    table(b"PAR1 and no more", name="list.parquet")


@pytest.mark.parametrize("path", ["", "no/such.csv", "photo.jpg"])
def test_no_table(table, path):
  with pytest.raises(ConfigError, match=r"set --config\.data\.path to"):
    table("", path=path)
