"""Tests of the listing of image files and of its cache."""

from __future__ import annotations

import os
import socket

import numpy as np
import pytest
import tensorflow as tf

from mae_jax.data import listing, sources
from mae_jax.utils.errors import ConfigError
from tests.data.conftest import encode

PNG = encode(np.zeros((1, 1), np.uint8), format="png")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path / "cache" / "mae_jax"


@pytest.fixture
def root(tmp_path):
  path = tmp_path / "root"
  path.mkdir()
  return path


def write(root, *names, content=PNG):
  for name in names:
    path = os.path.join(os.fsencode(root), os.fsencode(name))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
      file.write(content)


def opened(settings, root, channels=3):
  data = settings(source="folder", path=str(root), channels=channels)
  return sources.open_source(data, "train")


def names(source, root):
  start = os.fsencode(root) + b"/"
  files = [
    source.load(tf.constant(k, tf.int64))["file"].numpy()
    for k in range(source.num_examples)
  ]
  return [os.fsdecode(file.removeprefix(start)) for file in files]


def make_old(root, seconds=10):
  """Sets mtimes of folders to the past, so that the cache is valid."""
  for path, _, _ in os.walk(root):
    status = os.stat(path)
    os.utime(
      path, ns=(status.st_atime_ns, status.st_mtime_ns - seconds * 10**9)
    )


def test_names_may_be_any_bytes_and_suffixes_any_case(settings, root):
  wild = ["ä/ü ñ.PNG", "ä/new\nline.JPG", "ä/日本.webp", "ä/noext", "ä/x.dat"]
  write(root, *wild, b"\xc3\xa4/\xff\xfe.jpeg", "ä/deep/er/still/a.TIFF")
  source = opened(settings, root)
  found = names(source, root)
  assert found == sorted(found, key=os.fsencode)
  assert set(found) == {*wild, "ä/\udcff\udcfe.jpeg", "ä/deep/er/still/a.TIFF"}
  assert "\\xff\\xfe.jpeg" in source.name(found.index("ä/\udcff\udcfe.jpeg"))
  assert r"new\nline" in source.name(found.index("ä/new\nline.JPG"))


def test_files_are_sorted_by_path(settings, root):
  write(root, "c/a/z.png", "c/a-b.png", "c/a.png", "c/a/b/y.png", "c/a0.png")
  assert names(opened(settings, root), root) == [
    "c/a-b.png", "c/a.png", "c/a/b/y.png", "c/a/z.png", "c/a0.png",
  ]  # fmt: skip


def test_other_files_are_skipped_and_counted(settings, root, capsys):
  write(root, "c/a.png", "c/.hidden.png", "c/.dir/b.png")
  write(root, "c/n.txt", "c/m.TXT", "c/none", "BM", content=b"no image")
  os.mkfifo(root / "c" / "pipe.png")
  os.mkfifo(root / "c" / "pipe")
  os.symlink(root / "c" / "pipe", root / "c" / "link.jpg")
  with socket.socket(socket.AF_UNIX) as end:
    end.bind(os.path.relpath(root / "c" / "s.gif"))
  assert names(opened(settings, root), root) == ["c/a.png"]
  (line,) = capsys.readouterr().err.splitlines()
  assert f"{root}: files skipped because they are not images: 8" in line
  assert "3 no suffix, 2 .txt" in line


def test_links_are_followed_and_cycles_end(settings, root, tmp_path):
  write(tmp_path / "far", "a.png", "more/b.png")
  write(root, "c/own.png")
  os.symlink(tmp_path / "far", root / "c" / "far")
  os.symlink(tmp_path / "far" / "a.png", root / "c" / "one.png")
  os.symlink(root, root / "c" / "circle")
  os.symlink("itself", root / "c" / "itself")
  os.symlink("nowhere", root / "c" / "gone.jpg")
  assert names(opened(settings, root), root) == [
    "c/far/a.png", "c/far/more/b.png", "c/gone.jpg", "c/one.png", "c/own.png",
  ]  # fmt: skip


def test_a_folder_named_as_an_image(settings, root):
  write(root, "c/photos.jpg/a.png")
  assert names(opened(settings, root), root) == ["c/photos.jpg/a.png"]


def test_other_channel_counts_use_only_arrays(settings, root):
  write(root, "c/a.png", "c/b.npy", "c/d.NPY")
  assert names(opened(settings, root, channels=5), root) == [
    "c/b.npy", "c/d.NPY",
  ]  # fmt: skip
  assert opened(settings, root).num_examples == 3


def test_the_identity_depends_on_names_and_not_on_the_root(
  settings, root, tmp_path
):
  write(root, "c/a.png", "c/b.png")
  first = opened(settings, root).identity
  assert first["images"] == 2
  os.rename(root, tmp_path / "moved")
  assert opened(settings, tmp_path / "moved").identity == first
  os.rename(tmp_path / "moved/c/a.png", tmp_path / "moved/c/z.png")
  assert opened(settings, tmp_path / "moved").identity != first


def listed(root):
  tree = listing.open_tree(str(root))
  found = list(tree.walk("c"))
  tree.save()
  return found


@pytest.fixture
def scans(monkeypatch):
  """The folders that are really scanned."""
  seen, scandir = [], os.scandir

  def counted(path):
    seen.append(os.path.basename(path))
    return scandir(path)

  monkeypatch.setattr(os, "scandir", counted)
  return seen


def test_unchanged_folders_are_read_from_the_cache(root, cache, scans):
  write(root, "c/a.png", "c/d/b.png", "c/e/b.png", "c/e/\x01\udcff.png")
  make_old(root)
  scans.clear()
  before = listed(root)
  assert sorted(scans) == ["c", "d", "e"]
  scans.clear()
  assert listed(root) == before
  assert scans == []
  write(root, "c/e/new.png")
  assert sorted(listed(root)) == sorted([*before, "c/e/new.png"])
  assert scans == ["e"]
  # A recent mtime is not reliable: another change may leave it unchanged.
  scans.clear()
  listed(root)
  assert scans == ["e"]
  assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
  "content",
  [b"", b"{", b'{"version": 0}\n', b'{"version": 1}\n["c", 1]\n', b"\xff" * 50,
   b'{"version": 1}\n["c", "x", [], 0, 0]\n', b'{"version": 1}\n[[1], 1]\n'],
)  # fmt: skip
def test_a_broken_cache_is_replaced(root, cache, content):
  write(root, "c/a.png")
  make_old(root)
  listed(root)
  (file,) = cache.iterdir()
  good = file.read_bytes()
  file.write_bytes(content)
  assert listed(root) == ["c/a.png"]
  assert file.read_bytes() == good


def test_a_cache_that_cannot_be_written(root, cache):
  write(root, "c/a.png")
  cache.parent.write_bytes(b"a file where the folder should be")
  assert listed(root) == ["c/a.png"]


def test_a_folder_that_cannot_be_listed(root, monkeypatch):
  write(root, "c/a.png")

  def refuse(path):
    raise PermissionError(13, "Permission denied", path)

  monkeypatch.setattr(os, "scandir", refuse)
  with pytest.raises(ConfigError, match=r"root/ cannot.*: Permission"):
    listing.open_tree(str(root)).folder()


def test_a_folder_that_may_not_be_listed_is_skipped(
  settings, root, monkeypatch, capsys
):
  write(root, "a/1.png", "b/2.png", "b/own/3.png", "c/4.png")
  scandir = os.scandir

  def refuse(path):
    if path.endswith(("b/own", "/c")):
      raise PermissionError(13, "Permission denied", path)
    return scandir(path)

  monkeypatch.setattr(os, "scandir", refuse)
  source = opened(settings, root)
  assert names(source, root) == ["a/1.png", "b/2.png"]
  assert source.class_names == ("a", "b")
  err = capsys.readouterr().err
  for name in ("b/own", "c"):
    assert err.count(f"warning: {root}/{name} is skipped, with all images") == 1


def test_files_of_other_programs_are_ignored(settings, root, capsys):
  write(root, "a/1.png", "a/@eaDir/1.png/thumb.jpg", "__MACOSX/a/x.png")
  write(root, "a/.ipynb_checkpoints/1.png", "@eaDir/2.png", "b/2.ppm")
  write(root, "Thumbs.db", "a/.DS_Store", "a/desktop.ini", content=b"no image")
  source = opened(settings, root)
  assert names(source, root) == ["a/1.png", "b/2.ppm"]
  assert source.class_names == ("a", "b")
  assert capsys.readouterr().err == ""
