"""Listing of the image files under a folder, sorted by path.

A directory entry says whether it is a file, so there is no system call per
file. The content of each folder is cached between runs, and valid as long as
the folder's mtime is the same. One change is missed: a file without an image
suffix that becomes an image in place.
"""

import collections
import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from mae_jax.data import image_headers
from mae_jax.utils import storage
from mae_jax.utils.errors import ConfigError

SUFFIXES = (
  ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif",
  ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif", ".heic",
  ".heif", ".npy",
)  # fmt: skip
# What other programs put beside images; hidden files are left out too.
_IGNORED = ("@eadir", "__macosx", "thumbs.db", "desktop.ini", "#recycle")

_VERSION = 2
_MTIME_MARGIN = 2_000_000_000  # ns; a later change may not change the mtime
_REPORT_EVERY = 10  # seconds


class Folder(NamedTuple):
  """The content of a folder, without hidden files.

  Attributes:
    images: sorted names of image files.
    folders: sorted names of subfolders.
    skipped: number of other files, by suffix.
  """

  images: list[str]
  folders: list[str]
  skipped: dict[str, int]


class _CachedFolder(NamedTuple):
  """A line of the cache; names are joined by "/", which no name contains."""

  mtime: int  # of the folder, in ns; 0 if it is too recent to be reliable
  images: str
  folders: str
  skipped: dict[str, int]


class LocalTree:
  """A folder on a disk with all its subfolders; follows symbolic links."""

  def __init__(self, root: str):
    """Reads the cache of the folder `root`, but lists nothing yet."""
    self._root = os.path.join(root, "")
    self._cache = cache_file("listing", os.path.abspath(root), ".jsonl")
    self._old = _read_cache(self._cache)
    self._new: dict[str, _CachedFolder] = {}
    self._next_report = time.monotonic() + _REPORT_EVERY
    self._found = 0
    self.skipped: collections.Counter[str] = collections.Counter()
    self.closed: list[str] = []  # folders that may not be listed

  def folder(self, path: str = "") -> Folder:
    """Lists one folder, by its path under the root.

    Raises:
      ConfigError: if it cannot be listed.
    """
    try:
      return self._folder(path)
    except OSError as error:
      raise ConfigError(
        f"{self._root}{path} cannot be listed: {error.strerror}; change its "
        "permissions, or move the folder away"
      ) from error

  def _folder(self, path: str) -> Folder:
    cached = self._new.get(path)
    if cached is None:
      mtime = os.stat(self._root + path).st_mtime_ns
      cached = self._old.get(path)
      if cached is None or cached.mtime != mtime or not mtime:
        cached = self._scan(path, mtime)
      self._new[path] = cached
    return Folder(
      _split_names(cached.images), _split_names(cached.folders), cached.skipped
    )

  def walk(
    self, path: str, above: Collection[tuple[int, int]] = ()
  ) -> Iterator[str]:
    """Yields the sorted paths, under the root, of all images in one folder.

    Folders that this user may not list are skipped, and added to `closed`.

    Args:
      path: the folder's path under the root.
      above: (device, inode) of the folders above, which end cycles of links.
    """
    try:
      status = os.stat(self._root + path)
      key = status.st_dev, status.st_ino
    except OSError:
      key = 0, 0  # `folder` reports the error
    if key in above:
      return
    try:
      folder = self._folder(path)
    except PermissionError:
      self.closed.append(path)
      return
    except OSError:
      folder = self.folder(path)  # reports the error
    self.skipped.update(folder.skipped)
    # With a slash at its end, a folder sorts to where its paths belong.
    names = folder.images + [f"{name}/" for name in folder.folders]
    for name in sorted(names) if folder.folders else names:
      if name.endswith("/"):
        yield from self.walk(f"{path}/{name[:-1]}", (*above, key))
      else:
        yield f"{path}/{name}"
    self._report_progress(len(folder.images))

  def has_images(self, path: str) -> bool:
    """Checks whether there is an image in a folder or below."""
    return any(True for _ in self.walk(path))

  def save(self) -> None:
    """Writes the cache for the next run, if possible."""
    if self._new != self._old:
      _write_cache(self._cache, self._new)

  def _scan(self, path: str, mtime: int) -> _CachedFolder:
    images, folders, skipped = [], [], collections.Counter[str]()
    if mtime > time.time_ns() - _MTIME_MARGIN:
      mtime = 0
    with os.scandir(self._root + path) as entries:
      for entry in entries:
        if is_ignored(entry.name):
          continue
        if _safely(entry.is_dir):
          folders.append(entry.name)
        elif _is_image(entry):
          images.append(entry.name)
        else:
          skipped[suffix(entry.name)] += 1
    return _CachedFolder(
      mtime, "/".join(sorted(images)), "/".join(sorted(folders)), dict(skipped)
    )

  def _report_progress(self, number: int) -> None:
    self._found += number
    if time.monotonic() > self._next_report:
      self._next_report = time.monotonic() + _REPORT_EVERY
      print(
        f"listing {self._root}: {self._found} images so far",
        file=sys.stderr,
        flush=True,
      )


class RemoteTree:
  """A folder in a bucket, where a name with an image suffix is an image file.

  A request per name, to find out whether it is a file, would take hours.
  """

  def __init__(self, root: str):
    """Sets the folder's address; lists nothing yet."""
    self._root = epath.Path(root)
    self._found: dict[str, Folder] = {}
    self.skipped: collections.Counter[str] = collections.Counter()
    self.closed: list[str] = []

  def folder(self, path: str = "") -> Folder:
    """Lists one folder as `LocalTree.folder`, without counting other files."""
    if path not in self._found:
      names = sorted(each.name for each in (self._root / path).iterdir())
      names = [name for name in names if not is_ignored(name)]
      images = [name for name in names if has_image_suffix(name)]
      # Any other name may be a folder: `walk` finds out.
      other = [name for name in names if not has_image_suffix(name)]
      self._found[path] = Folder(images, other, {})
    return self._found[path]

  def walk(self, path: str) -> Iterator[str]:
    """Yields sorted paths of images as `LocalTree.walk`."""
    yield from sorted(self._walk(path))

  def _walk(self, path: str) -> Iterator[str]:
    if not (self._root / path).is_dir():
      self.skipped[suffix(path)] += 1
      return
    folder = self.folder(path)
    yield from (f"{path}/{name}" for name in folder.images)
    for name in folder.folders:
      yield from self._walk(f"{path}/{name}")

  def has_images(self, path: str) -> bool:
    """Checks as `LocalTree.has_images`, where a name with a dot is a file.

    A request for each annotation in a bucket would take hours.
    """
    if not (self._root / path).is_dir():
      return False
    images, folders, _ = self.folder(path)
    return bool(images) or any(
      self.has_images(f"{path}/{name}") for name in folders if "." not in name
    )

  def save(self) -> None:
    """Does nothing: folders in a bucket have no mtime to validate a cache."""


Tree = LocalTree | RemoteTree


def open_tree(root: str) -> Tree:
  """Returns the lister of a folder, on a disk or in a bucket."""
  return RemoteTree(root) if "://" in root else LocalTree(root)


def has_image_suffix(name: str) -> bool:
  """Checks whether a file name ends in one of SUFFIXES."""
  return name.lower().endswith(SUFFIXES)


def is_ignored(name: str) -> bool:
  """Checks for hidden files, and those that other programs put anywhere."""
  return name.startswith(".") or name.lower() in _IGNORED


def _is_image(entry: os.DirEntry[str]) -> bool:
  if not has_image_suffix(entry.name):
    return _safely(entry.is_file) and image_headers.is_image(entry.path)
  if entry.is_symlink():
    # A broken link counts as an unreadable image. A pipe must not be opened,
    # and is no image.
    return _safely(entry.is_file) or not os.path.exists(entry.path)
  return entry.is_file(follow_symlinks=False)


def _safely(check: Callable[[], bool]) -> bool:
  try:
    return check()
  except OSError:  # a cycle of links
    return False


def suffix(name: str) -> str:
  """Returns the suffix by which a skipped file is counted."""
  return os.path.splitext(name)[1].lower() or "no suffix"


def _split_names(names: str) -> list[str]:
  return names.split("/") if names else []


def cache_file(kind: str, key: str, suffix: str) -> Path:
  """Returns the path of a cached file of a kind, for a key of any length."""
  home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  name = hashlib.sha256(os.fsencode(key)).hexdigest()[:24]
  return Path(home) / "mae_jax" / f"{kind}-{name}{suffix}"


def _read_cache(path: Path) -> dict[str, _CachedFolder]:
  try:
    with path.open(encoding="ascii") as file:
      if json.loads(next(file)) != {"version": _VERSION}:
        return {}
      lines = (json.loads(line) for line in file)
      return {name: _cached_folder(*rest) for name, *rest in lines}
  # A missing, truncated or foreign cache is replaced at the end.
  except (OSError, ValueError, TypeError, StopIteration, RecursionError):
    return {}


def _cached_folder(*values: Any) -> _CachedFolder:
  if [type(each) for each in values] != [int, str, str, dict]:
    raise TypeError
  return _CachedFolder(*values)


def _write_cache(path: Path, folders: dict[str, _CachedFolder]) -> None:
  lines = [json.dumps({"version": _VERSION})]
  lines += [json.dumps([name, *cached]) for name, cached in folders.items()]
  text = "\n".join([*lines, ""])
  with contextlib.suppress(OSError):  # the cache only saves time
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_atomic(epath.Path(path), text.encode("ascii"))
