"""The image files under a folder, in the order of their paths.

Of a million files none is asked about: the folder that holds them says what is
a file. What a folder held is kept in a cache between runs, and counts as long
as the folder's time of change is the same; so a file that is changed in place,
has no image suffix, and was no image before is not noticed.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from etils import epath

from mae_jax.data import image_io
from mae_jax.utils.errors import ConfigError

SUFFIXES = (
  ".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
  ".npy",
)  # fmt: skip

_VERSION = 1
_MTIME_MARGIN = (
  2_000_000_000  # ns in which a change might leave the time as it was
)
_REPORT_EVERY = 10  # seconds


class Folder(NamedTuple):
  """What a folder holds, without what is hidden.

  Attributes:
    images: sorted names of files.
    folders: sorted names.
    passed: how many other files there are, by suffix.
  """

  images: list[str]
  folders: list[str]
  passed: dict[str, int]


class _CachedFolder(NamedTuple):
  """A line of the cache; "/" is in no name, so that it can part them."""

  changed: int  # the folder's mtime in ns; 0 if it cannot be relied upon
  images: str
  folders: str
  passed: dict[str, int]


class LocalTree:
  """A folder on a disk, and all in it. Links are followed."""

  def __init__(self, root: str):
    """Nothing is listed yet; `root` is the folder's path."""
    self._root = os.path.join(root, "")
    self._cache = _cache_file(root)
    self._old = _read_cache(self._cache)
    self._new: dict[str, _CachedFolder] = {}
    self._told = time.monotonic() + _REPORT_EVERY
    self._found = 0
    self.passed: collections.Counter[str] = collections.Counter()

  def folder(self, path: str = "") -> Folder:
    """What is in one folder, by its path under the root.

    Raises:
      ConfigError: if it cannot be listed.
    """
    try:
      changed = os.stat(self._root + path).st_mtime_ns
      known = self._old.get(path)
      if known is None or known.changed != changed or not changed:
        known = self._listed(path, changed)
    except OSError as error:
      raise ConfigError(
        f"{self._root}{path} cannot be listed: {error.strerror}; allow it, or "
        "move the folder away"
      ) from error
    self._new[path] = known
    return Folder(
      _split_names(known.images), _split_names(known.folders), known.passed
    )

  def walk(
    self, path: str, above: Collection[tuple[int, int]] = ()
  ) -> Iterator[str]:
    """Paths under the root of all images in one of its folders, sorted.

    Args:
      path: of the folder, under the root.
      above: the folders it was reached through, so that links end nowhere.
    """
    try:
      status = os.stat(self._root + path)
      key = status.st_dev, status.st_ino
    except OSError:
      key = 0, 0  # `folder` will say what is wrong
    if key in above:
      return
    folder = self.folder(path)
    self.passed.update(folder.passed)
    # Sorted with its slash, a folder stands where the paths in it belong.
    names = folder.images + [f"{name}/" for name in folder.folders]
    for name in sorted(names) if folder.folders else names:
      if name.endswith("/"):
        yield from self.walk(f"{path}/{name[:-1]}", (*above, key))
      else:
        yield f"{path}/{name}"
    self._tell(len(folder.images))

  def save(self) -> None:
    """Keeps what was listed for the next run, if it can."""
    if self._new != self._old:
      _write_cache(self._cache, self._new)

  def _listed(self, path: str, changed: int) -> _CachedFolder:
    images, folders, passed = [], [], collections.Counter[str]()
    if changed > time.time_ns() - _MTIME_MARGIN:
      changed = 0
    with os.scandir(self._root + path) as entries:
      for entry in entries:
        if entry.name.startswith("."):
          continue
        if _safely(entry.is_dir):
          folders.append(entry.name)
        elif _is_image(entry):
          images.append(entry.name)
        else:
          passed[suffix(entry.name)] += 1
    return _CachedFolder(
      changed, "/".join(sorted(images)), "/".join(sorted(folders)), dict(passed)
    )

  def _tell(self, number: int) -> None:
    self._found += number
    if time.monotonic() > self._told:
      self._told = time.monotonic() + _REPORT_EVERY
      print(
        f"listing {self._root}: {self._found} images so far",
        file=sys.stderr,
        flush=True,
      )


class RemoteTree:
  """The same for a bucket, in which what has the suffix of an image is a file.

  To ask about each name would take hours.
  """

  def __init__(self, root: str):
    """Nothing is listed yet; `root` is the folder's address."""
    self._root = epath.Path(root)
    self.passed: collections.Counter[str] = collections.Counter()

  def folder(self, path: str = "") -> Folder:
    """As `Local.folder`; without what is passed over."""
    names = sorted(each.name for each in (self._root / path).iterdir())
    names = [name for name in names if not name.startswith(".")]
    images = [name for name in names if has_image_suffix(name)]
    # Whatever else is listed may be a folder: `walk` finds out.
    return Folder(images, [x for x in names if not has_image_suffix(x)], {})

  def walk(self, path: str) -> Iterator[str]:
    """As `Local.walk`."""
    yield from sorted(self._walk(path))

  def _walk(self, path: str) -> Iterator[str]:
    if not (self._root / path).is_dir():
      self.passed[suffix(path)] += 1
      return
    folder = self.folder(path)
    yield from (f"{path}/{name}" for name in folder.images)
    for name in folder.folders:
      yield from self._walk(f"{path}/{name}")

  def save(self) -> None:
    """A bucket has no times of change to rely upon."""


def open_tree(root: str) -> LocalTree | RemoteTree:
  """The lister of a folder, wherever it is."""
  return RemoteTree(root) if "://" in root else LocalTree(root)


def has_image_suffix(name: str) -> bool:
  """Whether a file calls itself an image."""
  return name.lower().endswith(SUFFIXES)


def _is_image(entry: os.DirEntry[str]) -> bool:
  if not has_image_suffix(entry.name):
    return _safely(entry.is_file) and image_io.is_image(entry.path)
  if entry.is_symlink():
    # A link to nowhere is an image that cannot be read. A pipe, which nobody
    # may open, is none.
    return _safely(entry.is_file) or not os.path.exists(entry.path)
  return entry.is_file(follow_symlinks=False)


def _safely(ask: Callable[[], bool]) -> bool:
  try:
    return ask()
  except OSError:  # a link that leads in a circle
    return False


def suffix(name: str) -> str:
  """How a file that is passed over is counted."""
  return os.path.splitext(name)[1].lower() or "no suffix"


def _split_names(names: str) -> list[str]:
  return names.split("/") if names else []


def _cache_file(root: str) -> Path:
  home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  name = hashlib.sha256(os.fsencode(os.path.abspath(root))).hexdigest()[:24]
  return Path(home) / "mae_jax" / f"listing-{name}.jsonl"


def _read_cache(path: Path) -> dict[str, _CachedFolder]:
  try:
    with path.open(encoding="ascii") as file:
      if json.loads(next(file)) != {"version": _VERSION}:
        return {}
      lines = (json.loads(line) for line in file)
      return {name: _checked(*rest) for name, *rest in lines}
  # Absent, cut short, or of somebody else: it is made anew.
  except (OSError, ValueError, TypeError, StopIteration, RecursionError):
    return {}


def _checked(
  changed: int, images: str, folders: str, passed: dict
) -> _CachedFolder:
  known = _CachedFolder(changed, images, folders, passed)
  if [type(each) for each in known] != [int, str, str, dict]:
    raise TypeError
  return known


def _write_cache(path: Path, folders: dict[str, _CachedFolder]) -> None:
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
      "w", encoding="ascii", dir=path.parent, delete=False
    ) as file:
      file.write(json.dumps({"version": _VERSION}) + "\n")
      for name, known in folders.items():
        file.write(json.dumps([name, *known]) + "\n")
    os.replace(file.name, path)
  except OSError:
    pass  # it only saves time
