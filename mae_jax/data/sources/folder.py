"""A directory of image files, labeled by the folder they are in, or not.

Layouts: `DIR/train/CLASS/...` with `DIR/val/CLASS/...`; `DIR/CLASS/...`; and
both without class folders. DIR may be in a bucket (`gs://...`). What counts as
an image, and what is passed over, `listing` says.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf
from etils import epath

from mae_jax.config import DataConfig
from mae_jax.data.sources import base, listing
from mae_jax.utils.errors import ConfigError

EVAL_FOLDERS = ("val", "validation", "test")


def open_folder(data: DataConfig, split: base.Split) -> base.Indexed | None:
  """The images under data.path, in the order of their paths.

  Training takes DIR/train if there is one, else DIR; evaluation takes the first
  of DIR/val, DIR/validation and DIR/test. `data.train_split` is not looked at.

  Args:
    data: `path` is DIR; with `channels` other than 1 and 3, only arrays (.npy)
      are looked for.
    split: "train" or "eval".

  Returns:
    The source; None for "eval" if there is no folder of that kind. Labels are
    places in the sorted list of the training class folders that hold images.

  Raises:
    ConfigError: if DIR is absent or holds no image, if images lie beside class
      folders, or if evaluation has a class that training does not.
  """
  if not data.path:
    raise ConfigError(
      "data.path is empty: set --config.data.path=DIR, a folder of images"
    )
  root = epath.Path(data.path).expanduser()
  if not root.is_dir():
    raise ConfigError(
      f"data.path={data.path!r} is not a folder: set --config.data.path to one "
      f"that holds {_expected_layouts(root)}"
    )
  train = root / "train" if (root / "train").is_dir() else root
  held_out = _held_out(root)
  # Beside class folders, held-out images are not a class.
  ignore = EVAL_FOLDERS if train == root else ()
  if split == "train":
    return _source(ImageFolder(train, data, ignore), None, root)
  if held_out is None:
    return None
  classes = ImageFolder(train, data, ignore).classes()
  images = ImageFolder(held_out, data)
  eval_classes = images.classes()
  unknown = [name for name in eval_classes if name not in classes]
  if unknown:
    raise ConfigError(
      f"{held_out} has the class {unknown[0]!r} ({len(unknown)} such), of "
      f"which {train} has no image: rename or remove it, or set "
      "--config.data.eval_split='' to do without held-out images"
    )
  return _source(images, classes if eval_classes else (), root)


def _held_out(root: epath.Path) -> epath.Path | None:
  for name in EVAL_FOLDERS:
    if (root / name).is_dir():
      return root / name
  return None


class ImageFolder:
  """The images of one folder, as its class folders divide them."""

  def __init__(
    self, folder: epath.Path, data: DataConfig, ignore: Sequence[str] = ()
  ):
    self.folder = os.fspath(folder)
    self.suffixes: tuple[str, ...] = listing.SUFFIXES
    if data.channels not in (1, 3):
      self.suffixes = (".npy",)
    self._tree = listing.open_tree(self.folder)
    top = self._tree.folder()
    self._tree.passed.update(top.passed)
    self._flat = list(self._wanted(top.images))
    self._folders = [name for name in top.folders if name not in ignore]

  def classes(self) -> tuple[str, ...]:
    """Sorted names of the folders that hold images; () if images lie flat."""
    names = (
      name for name in self._folders if any(True for _ in self._in(name))
    )
    return self._checked(tuple(names))

  def read(
    self, classes: tuple[str, ...] | None
  ) -> tuple[list[bytes], list[int], tuple[str, ...]]:
    """Paths under the folder, their labels, and the classes.

    Args:
      classes: names in the order of labels, of which some may be absent; None
        for those that hold images; () if all lie flat.
    """
    if classes == ():
      return self._all_flat()
    found = {name: list(self._in(name)) for name in self._folders}
    self._tree.save()
    self._tell_passed()
    if classes is None:
      classes = self._checked(tuple(name for name in found if found[name]))
    if not classes:
      return self._all_flat()
    files: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
      # A held-out part need not have every class.
      paths = found.pop(name, [])
      files += paths
      labels += [label] * len(paths)
    return files, labels, classes

  def whatever_folder(self) -> list[bytes]:
    """Paths under the folder of all images in it, sorted."""
    found: list[bytes] = []
    # With its slash, a folder is sorted to where the paths in it belong.
    for name in sorted([*self._flat, *(f"{x}/" for x in self._folders)]):
      inside = name.endswith("/")
      found += self._in(name[:-1]) if inside else [os.fsencode(name)]
    self._tree.save()
    self._tell_passed()
    return found

  def _all_flat(self) -> tuple[list[bytes], list[int], tuple[str, ...]]:
    return [os.fsencode(x) for x in self._flat], [-1] * len(self._flat), ()

  def _checked(self, classes: tuple[str, ...]) -> tuple[str, ...]:
    if self._flat and classes:
      raise ConfigError(
        f"{self.folder} has images beside class folders, for instance "
        f"{self.folder}/{self._flat[0]} and {self.folder}/{classes[0]}: move "
        "the images into class folders, or the folders away"
      )
    return classes

  def _in(self, name: str) -> Iterator[bytes]:
    return map(os.fsencode, self._wanted(self._tree.walk(name)))

  def _wanted(self, names: Iterable[str]) -> Iterator[str]:
    for name in names:
      if self.suffixes == listing.SUFFIXES or name.lower().endswith(".npy"):
        yield name
      else:
        self._tree.passed[listing.suffix(name)] += 1

  def _tell_passed(self) -> None:
    passed = self._tree.passed
    if passed:
      kinds = ", ".join(f"{n} {kind}" for kind, n in passed.most_common(8))
      print(
        f"{self.folder}: {passed.total()} files are no images and are passed "
        f"over ({kinds})",
        file=sys.stderr,
        flush=True,
      )


def _source(
  images: ImageFolder, classes: tuple[str, ...] | None, root: epath.Path
) -> base.Indexed:
  files, labels, classes = images.read(classes)
  if not files:
    raise ConfigError(
      f"{images.folder} has no image ({', '.join(images.suffixes)}): put some "
      f"there, or set --config.data.path to a folder that holds "
      f"{_expected_layouts(root)}"
    )
  identity: base.Identity = {"images": len(files), "names": base.digest(files)}
  start = os.fsencode(os.path.join(images.folder, ""))
  file_table = tf.constant(files)  # [N], under the folder
  load = loader(start, file_table, np.asarray(labels, np.int64))
  total = len(files)
  numbers = np.asarray(labels, np.int32) if classes else None

  def name(index: int) -> str:
    text = (start + file_table[index].numpy()).decode(errors="backslashreplace")
    return text if text.isprintable() else repr(text)

  return base.Indexed(
    total, classes or None, load, identity, name=name, labels=numbers
  )


def loader(
  start: bytes, files: tf.Tensor, labels: np.ndarray
) -> Callable[[tf.Tensor], base.Record]:
  """The `load` of an `Indexed` source of image files.

  Args:
    start: what stands in front of every path.
    files: [N] the rest of it.
    labels: int64 [N], -1 for none.
  """
  label_table = tf.constant(labels)

  def load(index: tf.Tensor) -> base.Record:
    return {
      "file": tf.strings.join([start, files[index]]),
      "label": label_table[index],
      "id": tf.cast(index, tf.int64),
    }

  return load


def _expected_layouts(root: epath.Path) -> str:
  return (
    f"{root}/train/CLASS/*.jpg with {root}/val/CLASS/*.jpg, "
    f"{root}/CLASS/*.jpg or {root}/*.jpg"
  )
