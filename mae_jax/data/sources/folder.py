"""A directory of image files, labelled by the folder they are in, or not.

Layouts: `DIR/train/CLASS/...` with `DIR/val/CLASS/...`; `DIR/CLASS/...`; and
both without class folders. Paths are `etils.epath`, so DIR may be in a bucket;
whatever has the suffix of an image is taken for a file, because asking a bucket
about each name would take hours on a million of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf
from etils import epath

from mae_jax import config
from mae_jax.data.sources import base

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
EVAL_FOLDERS = ("val", "validation", "test")


def open_folder(data: config.Data, split: base.Split) -> base.Indexed | None:
  """The images under data.path, in the order of their paths.

  Training takes DIR/train if there is one, else DIR; evaluation takes the first
  of DIR/val, DIR/validation and DIR/test. `data.train_split` is not looked at.

  Args:
    data: `path` is DIR; `channels` must be 1 or 3.
    split: "train" or "eval".

  Returns:
    The source; None for "eval" if there is no folder of that kind. Labels are
    places in the sorted list of the training class folders that hold images.

  Raises:
    ConfigError: if DIR is absent or holds no image, if images lie beside class
      folders, or if evaluation has a class that training does not.
  """
  base.check_channels(data)
  if not data.path:
    raise config.ConfigError(
      "data.path is empty: set --config.data.path=DIR, a folder of images"
    )
  root = epath.Path(data.path).expanduser()
  if not root.is_dir():
    raise config.ConfigError(
      f"data.path={data.path!r} is not a folder: set --config.data.path to one "
      f"that holds {_looked_for(root)}"
    )
  train = root / "train" if (root / "train").is_dir() else root
  held_out = _held_out(root)
  # Beside class folders, held-out images are not a class.
  ignore = EVAL_FOLDERS if train == root else ()
  classes = _classes(train, ignore)
  if split == "train":
    return _source(train, classes, root)
  if held_out is None:
    return None
  eval_classes = _classes(held_out)
  unknown = [name for name in eval_classes if name not in classes]
  if unknown:
    raise config.ConfigError(
      f"{held_out} has the class {unknown[0]!r} ({len(unknown)} such), of "
      f"which {train} has no image: rename or remove it, or set "
      "--config.data.eval_split='' to do without held-out images"
    )
  return _source(held_out, classes if eval_classes else (), root)


def _held_out(root: epath.Path) -> epath.Path | None:
  for name in EVAL_FOLDERS:
    if (root / name).is_dir():
      return root / name
  return None


def _source(
  folder: epath.Path, classes: tuple[str, ...], root: epath.Path
) -> base.Indexed:
  files: list[str] = []
  labels: list[int] = []
  for label, name in enumerate(classes):
    # A held-out part need not have every class.
    if (folder / name).is_dir():
      found = sorted(_images(folder / name))
      files += found
      labels += [label] * len(found)
  if not classes:
    files = sorted(path for path in _entries(folder) if _is_image(path))
    labels = [-1] * len(files)
  if not files:
    raise config.ConfigError(
      f"{folder} has no image ({', '.join(SUFFIXES)}): put some there, or set "
      f"--config.data.path to a folder that holds {_looked_for(root)}"
    )
  file_table = tf.constant(files)  # [N]
  label_table = tf.constant(np.asarray(labels, np.int64))  # [N]

  def load(index: tf.Tensor) -> base.Record:
    return {
      "image": tf.io.read_file(file_table[index]),
      "label": label_table[index],
    }

  return base.Indexed(len(files), classes or None, load)


def _classes(folder: epath.Path, ignore: Sequence[str] = ()) -> tuple[str, ...]:
  """The sorted names of the folders that hold images; () if images lie flat."""
  entries = list(_entries(folder))
  flat = next((path for path in entries if _is_image(path)), None)
  classes = sorted(
    name
    for path in entries
    if not _is_image(path)
    and (name := os.path.basename(path)) not in ignore
    and any(True for _ in _images(epath.Path(path)))
  )
  if flat is not None and classes:
    raise config.ConfigError(
      f"{folder} has images beside class folders, for instance {flat} and "
      f"{folder / classes[0]}: move the images into class folders, or the "
      "folders away"
    )
  return tuple(classes)


def _images(folder: epath.Path) -> Iterator[str]:
  """Paths of all images at any depth, in no order; nothing for a file."""
  if not folder.is_dir():
    return
  for path in _entries(folder):
    if _is_image(path):
      yield path
    else:
      yield from _images(epath.Path(path))


def _entries(folder: epath.Path) -> Iterator[str]:
  for path in folder.iterdir():
    if not path.name.startswith("."):
      yield os.fspath(path)


def _is_image(path: str) -> bool:
  return path.lower().endswith(SUFFIXES)


def _looked_for(root: epath.Path) -> str:
  return (
    f"{root}/train/CLASS/*.jpg with {root}/val/CLASS/*.jpg, "
    f"{root}/CLASS/*.jpg or {root}/*.jpg"
  )
