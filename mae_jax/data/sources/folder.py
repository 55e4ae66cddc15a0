"""A directory of image files, with or without a folder per class.

Layouts: `DIR/train/CLASS/...` with `DIR/val/CLASS/...`; `DIR/CLASS/...`; and
both without class folders. DIR may be in a bucket (`gs://...`). `listing`
decides which files are images.
"""

import os

import numpy as np
from etils import epath

from mae_jax.config import DataConfig
from mae_jax.data.image_folder import EVAL_FOLDERS, ImageFolder
from mae_jax.data.sources import base
from mae_jax.data.tf_setup import tf
from mae_jax.utils.errors import ConfigError


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
    total, classes or None, load, identity, name=name, labels=numbers
  )


def _expected_layouts(root: epath.Path) -> str:
  return (
    f"{root}/train/CLASS/*.jpg with {root}/val/CLASS/*.jpg, "
    f"{root}/CLASS/*.jpg or {root}/*.jpg"
  )
