"""A directory of image files, with or without a folder per class.

Layouts: `DIR/train/CLASS/...` with `DIR/val/CLASS/...`; `DIR/CLASS/...`; and
both without class folders. DIR may be in a bucket (`gs://...`). `listing`
decides which files are images.
"""

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


def open_folder(data: DataConfig, split: base.Split) -> base.Files | None:
  """Opens the images under data.path, sorted by path.

  Training uses DIR/train if it exists, else DIR. Evaluation uses the first of
  DIR/val, DIR/validation and DIR/test. `data.train_split` is ignored.

  Args:
    data: `path` is DIR; if `channels` is neither 1 nor 3, only arrays (.npy)
      are used.
    split: "train" or "eval".

  Returns:
    The source; None for "eval" if there is no evaluation folder. Labels are
    indices into the sorted list of training class folders that have images.

  Raises:
    ConfigError: if DIR is missing or has no image, if images lie beside class
      folders, or if an evaluation class is not a training class.
  """
  if not data.path:
    raise ConfigError(
      "data.path is empty: set --config.data.path=DIR, a folder of images"
    )
  root = epath.Path(data.path).expanduser()
  if not root.is_dir():
    raise ConfigError(
      f"data.path={data.path!r} is not a folder: set --config.data.path to one "
      f"with {_expected_layouts(root)}"
    )
  train = root / "train" if (root / "train").is_dir() else root
  held_out = next(
    (root / name for name in EVAL_FOLDERS if (root / name).is_dir()), None
  )
  # In DIR/CLASS layouts, the folder of held-out images is not a class.
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
      f"{held_out} has {len(unknown)} classes that have no image in {train}, "
      f"such as {unknown[0]!r}: rename or remove them, or set "
      "--config.data.eval_split='' to run without held-out images"
    )
  return _source(images, classes if eval_classes else (), root)


class ImageFolder:
  """The images of one folder, grouped by class folders if there are any."""

  def __init__(
    self, folder: epath.Path, data: DataConfig, ignore: Sequence[str] = ()
  ):
    self.folder = os.fspath(folder)
    self.suffixes: tuple[str, ...] = listing.SUFFIXES
    if data.channels not in (1, 3):
      self.suffixes = (".npy",)
    self._tree = listing.open_tree(self.folder)
    top = self._tree.folder()
    self._tree.skipped.update(top.skipped)
    self._flat = list(self._wanted(top.images))
    self._folders = [name for name in top.folders if name not in ignore]

  def classes(self) -> tuple[str, ...]:
    """Returns the sorted class folders that have images; () if there are none.

    Raises:
      ConfigError: if there are images beside class folders.
    """
    names = (
      name for name in self._folders if any(True for _ in self._in(name))
    )
    return self._check_flat(tuple(names))

  def read(
    self, classes: tuple[str, ...] | None
  ) -> tuple[list[bytes], list[int], tuple[str, ...]]:
    """Returns the paths under the folder, their labels, and the classes.

    Args:
      classes: class names in the order of labels, whose folders may be missing;
        None for all class folders that have images; () for no classes.
    """
    if classes == ():
      return self._all_flat()
    found = {name: list(self._in(name)) for name in self._folders}
    self._tree.save()
    self._report_skipped()
    if classes is None:
      classes = self._check_flat(tuple(name for name in found if found[name]))
    if not classes:
      return self._all_flat()
    files: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
      # Held-out images need not have every class.
      paths = found.pop(name, [])
      files += paths
      labels += [label] * len(paths)
    return files, labels, classes

  def all_paths(self) -> list[bytes]:
    """Returns the sorted paths of all images, whatever folders they are in."""
    found: list[bytes] = []
    # With a slash at its end, a folder sorts to where its paths belong.
    for name in sorted([*self._flat, *(f"{x}/" for x in self._folders)]):
      inside = name.endswith("/")
      found += self._in(name[:-1]) if inside else [os.fsencode(name)]
    self._tree.save()
    self._report_skipped()
    return found

  def _all_flat(self) -> tuple[list[bytes], list[int], tuple[str, ...]]:
    return [os.fsencode(x) for x in self._flat], [-1] * len(self._flat), ()

  def _check_flat(self, classes: tuple[str, ...]) -> tuple[str, ...]:
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
        self._tree.skipped[listing.suffix(name)] += 1

  def _report_skipped(self) -> None:
    skipped = self._tree.skipped
    if skipped:
      kinds = ", ".join(f"{n} {kind}" for kind, n in skipped.most_common(8))
      print(
        f"{self.folder}: skipped {skipped.total()} files that are not images "
        f"({kinds})",
        file=sys.stderr,
        flush=True,
      )


def _source(
  images: ImageFolder, classes: tuple[str, ...] | None, root: epath.Path
) -> base.Files:
  files, labels, classes = images.read(classes)
  if not files:
    raise ConfigError(
      f"{images.folder} has no image ({', '.join(images.suffixes)}): put some "
      f"there, or set --config.data.path to a folder with "
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

  return base.Files(
    total, classes or None, load, identity, name=name, labels=numbers
  )


def loader(
  start: bytes, files: tf.Tensor, labels: np.ndarray
) -> Callable[[tf.Tensor], base.Record]:
  """Makes the `load` function of a `Files` source.

  Args:
    start: the folder, which every path begins with.
    files: [N], paths under the folder.
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
