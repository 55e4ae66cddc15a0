"""A directory of image files, with or without a folder per class.

Layouts: `DIR/train/CLASS/...` with `DIR/val/CLASS/...`; `DIR/CLASS/...`; and
both without class folders. DIR may be in a bucket (`gs://...`). `layout`
decides which folders are splits, and `listing` which files are images.
"""

import os
from collections.abc import Sequence

import numpy as np
from etils import epath

from mae_jax.config import DataConfig
from mae_jax.data import class_names, holdout, layout, listing
from mae_jax.data.image_folder import ImageFolder
from mae_jax.data.sources import base
from mae_jax.data.tf_setup import tf
from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError

# Names of folders beside one another in data for segmentation.
_IMAGES = ("images", "imgs", "image", "img", "jpegimages")
_MASKS = (
  "masks", "mask", "labels", "label", "annotations", "segmentations", "gt",
  "groundtruth", "segmentationclass", "segmentationobject",
)  # fmt: skip


def open_folder(data: DataConfig, split: base.Split) -> base.Files | None:
  """Opens the images under data.path, sorted by path.

  Args:
    data: `path` is DIR; `layout`, `train_split` and `eval_split` choose the
      folders of the splits, see `layout`. With `holdout`, training and
      evaluation share a folder. If `channels` is neither 1 nor 3, only arrays
      (.npy) are used.
    split: "train" or "eval".

  Returns:
    The source; None for "eval" if there are no held-out images. Labels are
    indices into the sorted list of training class folders that have images.

  Raises:
    ConfigError: if DIR is missing or has no image, if its layout is unclear, if
      images lie beside class folders, or if an evaluation class is not a
      training class.
  """
  root = _root(data)
  tree = listing.open_tree(os.fspath(root))
  found = layout.find_layout(root, tree, data)
  train = root / found.train
  if data.holdout and found.held_out:
    raise ConfigError(
      f"data.holdout={data.holdout:g} holds out a share of the training images"
      f", but {root / found.held_out} has held-out images: set "
      "--config.data.holdout=0, or move that folder away"
    )
  if split == "eval" and not (data.holdout or found.held_out):
    return None
  shared = tree if train == root else None
  images = ImageFolder(train, data, found.splits if shared else (), shared)
  if split == "train" or data.holdout:
    files, labels, classes = images.read(None)
    _check_no_splits(train, files, classes, data)
    _warn_masks(train, classes, split)
    alike = class_names.find_alike(classes)
    if alike and split == "train":
      console.warn(
        f"{train} has {len(classes)} classes"
        f"{class_names.describe_alike(alike)}: if they are one class, put "
        "their images into one folder",
        shared=True,
      )
    if data.holdout:
      wanted = holdout.choose(files, labels, data.holdout) == (split == "eval")
      files = [file for file, keep in zip(files, wanted, strict=True) if keep]
      labels = [
        label for label, keep in zip(labels, wanted, strict=True) if keep
      ]
    return _source(images, files, labels, classes, root)
  held_out = ImageFolder(root / found.held_out, data)
  classes, eval_classes = images.classes(), held_out.classes()
  unknown = [name for name in eval_classes if name not in classes]
  if unknown:
    alike = class_names.find_alike((*unknown, *classes))
    raise ConfigError(
      f"{held_out.folder} has {len(unknown)} folder(s) of images that {train} "
      f"lacks, such as {unknown[0]!r}{class_names.describe_alike(alike)}: sort "
      "the images into folders with the names of the training classes, use "
      "--config.data.source=table if a file lists their labels, or set "
      "--config.data.eval_split='' to run without held-out images"
    )
  read = held_out.read(classes if eval_classes else ())
  return _source(held_out, *read, root)


def _warn_masks(
  folder: epath.Path, classes: Sequence[str], split: base.Split
) -> None:
  """Warns of masks beside images, which are class folders by their place."""
  images, masks = (
    [name for name in classes if name.lower() in known]
    for known in (_IMAGES, _MASKS)
  )
  if images and masks and split == "train":
    console.warn(
      f"{folder / masks[0]} is used as images of a class, as {images[0]} is: "
      f"if it holds masks, set --config.data.path={folder / images[0]}",
      shared=True,
    )


def find_layout(data: DataConfig) -> layout.Layout:
  """Decides which folders of data.path are splits; see `layout`."""
  root = _root(data)
  return layout.find_layout(root, listing.open_tree(os.fspath(root)), data)


def _root(data: DataConfig) -> epath.Path:
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
  return root


def _check_no_splits(
  folder: epath.Path,
  files: Sequence[bytes],
  classes: Sequence[str],
  data: DataConfig,
) -> None:
  """Refuses class folders that hold splits, whose test images would train."""
  if data.layout != "auto" or not classes:
    return
  inside: dict[bytes, set[str]] = {}  # names of the folders in each folder
  for path in {file.rpartition(b"/")[0] for file in files}:
    while b"/" in path:
      path, _, name = path.rpartition(b"/")
      inside.setdefault(path, set()).add(os.fsdecode(name))
  for name, names in sorted(inside.items()):
    train, held_out = (
      [each for each in names if layout.split_name(each) in known]
      for known in (layout.TRAIN_NAMES, layout.HELD_OUT_NAMES)
    )
    if train and held_out:
      path = folder / os.fsdecode(name)
      raise ConfigError(
        f"{path} has folders {min(train)} and {min(held_out)}, and would be one"
        f" class with the images of both: set --config.data.path={path}, or "
        "--config.data.layout=classes if that is right"
      )


def _source(
  images: ImageFolder,
  files: Sequence[bytes],
  labels: Sequence[int],
  classes: tuple[str, ...],
  root: epath.Path,
) -> base.Files:
  if not files:
    raise ConfigError(
      f"{images.folder} has no image ({', '.join(images.suffixes)}): put some "
      f"there, or set --config.data.path to a folder with "
      f"{_expected_layouts(root)}"
    )
  identity: base.Identity = {"images": len(files), "names": base.digest(files)}
  start = os.fsencode(os.path.join(images.folder, ""))
  file_table = tf.constant(files)  # [N], under the folder
  label_table = tf.constant(labels, tf.int64)  # -1 for none

  def load(index: tf.Tensor) -> base.Record:
    return {
      "file": tf.strings.join([start, file_table[index]]),
      "label": label_table[index],
      "id": tf.cast(index, tf.int64),
    }

  total = len(files)
  numbers = np.asarray(labels, np.int32) if classes else None

  def name(index: int) -> str:
    text = (start + file_table[index].numpy()).decode(errors="backslashreplace")
    return text if text.isprintable() else repr(text)

  return base.Files(
    total,
    classes or None,
    load,
    identity,
    name=name,
    labels=numbers,
    where=images.folder,
  )


def _expected_layouts(root: epath.Path) -> str:
  return (
    f"{root}/train/CLASS/*.jpg with {root}/val/CLASS/*.jpg, "
    f"{root}/CLASS/*.jpg or {root}/*.jpg"
  )
