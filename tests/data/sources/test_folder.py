"""Tests of folder layouts, image suffixes, and errors."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mae_jax.data import sources
from mae_jax.utils.errors import ConfigError


@pytest.fixture
def tree(tmp_path):
  """Writes 1-pixel images whose gray levels count up from 0.

  A name that ends in .txt becomes a text file.
  """

  def write(*names):
    for level, name in enumerate(names):
      path = tmp_path / name
      path.parent.mkdir(parents=True, exist_ok=True)
      with path.open("wb") as file:
        if name.endswith((".txt", ".md")):
          file.write(b"no image")
        else:
          Image.new("L", (1, 1), level).save(file, "PNG")
    return tmp_path

  return write


def opened(settings, root, split="train", **changes):
  data = settings(source="folder", path=str(root), channels=3, **changes)
  return sources.open_source(data, split)


def contents(source):
  """Lists (gray level, label) of each record, in order."""
  result = []
  for index in range(source.num_examples):
    record = source.load(tf.constant(index, tf.int64))
    image = tf.io.decode_image(tf.io.read_file(record["file"])).numpy()
    result.append((int(image[0, 0, 0]), int(record["label"])))
  return result


def test_class_folders_with_validation(settings, tree):
  root = tree(
    "train/b/2.png", "train/b/1.png", "train/a/deep/er/x.png", "val/b/0.png"
  )
  train, held_out = opened(settings, root), opened(settings, root, "eval")
  assert train.class_names == held_out.class_names == ("a", "b")
  assert contents(train) == [(2, 0), (1, 1), (0, 1)]
  assert contents(held_out) == [(3, 1)]


@pytest.mark.parametrize("name", ["val", "validation", "test"])
def test_class_folders_at_the_root(settings, tree, name):
  root = tree("cat/0.png", "dog/0.png", f"{name}/dog/0.png")
  assert opened(settings, root).class_names == ("cat", "dog")
  assert contents(opened(settings, root)) == [(0, 0), (1, 1)]
  assert contents(opened(settings, root, "eval")) == [(2, 1)]


def test_flat_folders(settings, tree):
  root = tree("b.png", "a.png", "val/c.png")
  assert contents(opened(settings, root)) == [(1, -1), (0, -1)]
  assert opened(settings, root).class_names is None
  assert contents(opened(settings, root, "eval")) == [(2, -1)]


def test_flat_train_and_val(settings, tree):
  root = tree("train/b.png", "train/a.png", "val/c.png")
  assert contents(opened(settings, root)) == [(1, -1), (0, -1)]
  assert contents(opened(settings, root, "eval")) == [(2, -1)]


def test_no_held_out_folder(settings, tree):
  assert opened(settings, tree("a/0.png"), "eval") is None


def test_an_empty_eval_split_has_no_source(settings, tree):
  root = tree("train/a/0.png", "val/a/0.png")
  assert opened(settings, root, "eval", eval_split="") is None


def test_suffixes_hidden_files_and_folders_without_images(settings, tree):
  root = tree(
    "a/1.JPG", "a/2.jpeg", "a/3.PnG", "a/4.bmp", "a/5.gif", "a/.6.png",
    "a/7.txt", ".hidden/8.png", "empty/readme.md", "notes.txt",
  )  # fmt: skip
  source = opened(settings, root)
  assert source.class_names == ("a",)
  assert [level for level, _ in contents(source)] == [0, 1, 2, 3, 4]


def test_held_out_images_may_lack_a_class(settings, tree):
  root = tree("train/a/0.png", "train/b/0.png", "val/b/0.png")
  assert contents(opened(settings, root, "eval")) == [(2, 1)]


@pytest.mark.parametrize(
  ("names", "split", "words"),
  [
    ([], "train", r"has no image \(\.jpg.*train/CLASS"),
    (["train/readme.txt"], "train", "train has no image"),
    (["a/0.png", "val/readme.txt"], "eval", "val has no image"),
    (["0.png", "a/1.png"], "train", "0.png and .*a: move"),
    (["train/a/0.png", "val/b/0.png"], "eval", "'b'.*eval_split=''"),
    (
      ["train/0.png", "val/b/0.png"],
      "eval",
      "'b'.*sort the images into folders",
    ),
  ],
)
def test_errors_name_the_folder_and_the_way_out(
  settings, tree, names, split, words
):
  root = tree(*names)
  with pytest.raises(ConfigError, match=words) as error:
    opened(settings, root, split)
  assert str(root) in str(error.value)


def test_absent_folder(settings, tmp_path):
  with pytest.raises(ConfigError, match="nowhere' is not a folder: set"):
    opened(settings, tmp_path / "nowhere")
  with pytest.raises(ConfigError, match=r"data\.path is empty: set"):
    opened(settings, "")


def test_real_photos(settings, photo_dir):
  train = opened(settings, photo_dir)
  assert (train.num_examples, train.class_names) == (13, ("cat", "dog"))
  labels = [label for _, label in contents(train)]
  np.testing.assert_array_equal(labels, [0] * 7 + [1] * 6)
