"""Tests of `open_images`: order, names and errors."""

from __future__ import annotations

import os

import numpy as np
import pytest

from mae_jax.data import image_files
from mae_jax.utils.errors import ConfigError
from tests.data.conftest import encode


@pytest.fixture
def write(tmp_path):
  """Writes 1-pixel images whose gray levels count up from 0."""

  def write_images(*names):
    for level, name in enumerate(names):
      path = tmp_path / name
      path.parent.mkdir(parents=True, exist_ok=True)
      image = np.full((1, 1), level, np.uint8)
      path.write_bytes(encode(image, format="png"))
    return tmp_path

  return write_images


def contents(images):
  """Lists (name, gray level) of each image, in order."""
  return [
    (name, int(images.read(index)[0, 0, 0]))
    for index, name in enumerate(images.names)
  ]


def test_images_are_sorted_by_path(settings, write):
  root = write("b.png", "train/x/1.png", "a.png", "val/0.png", "a/z/2.png")
  (root / "val" / "notes.txt").write_text("no image")
  (root / ".hidden").mkdir()
  (root / ".hidden" / "x.png").write_bytes((root / "a.png").read_bytes())
  source = image_files.open_images(root, settings(channels=3))
  assert contents(source) == [
    ("a.png", 2), ("a/z/2.png", 4), ("b.png", 0), ("train/x/1.png", 1),
    ("val/0.png", 3),
  ]  # fmt: skip
  assert [name for name, _ in contents(source)] == sorted(
    os.path.relpath(os.path.join(folder, name), root)
    for folder, _, names in os.walk(root)
    for name in names
    if name.endswith(".png") and ".hidden" not in folder
  )


def test_one_file_may_have_any_name(settings, write, monkeypatch):
  root = write("a.png", ".b")
  for path in (root / ".b", str(root / ".b")):
    source = image_files.open_images(path, settings(channels=3))
    assert contents(source) == [(".b", 1)]
  monkeypatch.chdir(root)
  source = image_files.open_images("a.png", settings(channels=3))
  assert contents(source) == [("a.png", 0)]


def test_other_channel_counts_use_only_arrays(settings, write):
  root = write("a.png", "b/c.png")
  np.save(root / "b" / "x.npy", np.zeros((2, 2, 5), np.uint8))
  source = image_files.open_images(root, settings(channels=5))
  assert source.names == ["b/x.npy"]


@pytest.mark.parametrize("name", ["none", "pipe"])
def test_a_missing_path_is_an_error(settings, tmp_path, name):
  os.mkfifo(tmp_path / "pipe")
  with pytest.raises(ConfigError, match=f"no folder or file '.*{name}'"):
    image_files.open_images(tmp_path / name, settings())


def test_no_image_is_an_error(settings, tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "notes.txt").write_text("no image")
  with pytest.raises(ConfigError, match=r"have no image .*name another"):
    image_files.open_images(tmp_path, settings(channels=3))
