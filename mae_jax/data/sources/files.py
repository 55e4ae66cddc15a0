"""Image files that a tool is given: one file, or all images under a folder.

Folders are not classes here. `listing` decides which files are images.
"""

import os

import numpy as np
import tensorflow as tf
from etils import epath

from mae_jax.config import DataConfig
from mae_jax.data.sources import base, folder
from mae_jax.utils import storage
from mae_jax.utils.errors import ConfigError


def open_files(path: epath.PathLike, data: DataConfig) -> base.Files:
  """Opens one image file, or all images under a folder, sorted by path.

  Args:
    path: the folder or file, on a disk or in a bucket.
    data: if `channels` is neither 1 nor 3, only arrays (.npy) are used.

  Returns:
    The source, without labels. The `name` of an image is its path under the
    folder, or the name of the single file.

  Raises:
    ConfigError: if there is no such folder or file, or it has no image.
  """
  with storage.os_errors(path):
    root, files = _find_files(path, data)
  start = os.fsencode(os.path.join(root, ""))
  load = folder.loader(
    start, tf.constant(files), np.full(len(files), -1, np.int64)
  )
  identity: base.Identity = {"images": len(files), "names": base.digest(files)}

  def name(index: int) -> str:
    return os.fsdecode(files[index])

  return base.Files(len(files), None, load, identity, name=name)


def _find_files(
  path: epath.PathLike, data: DataConfig
) -> tuple[epath.PathLike, list[bytes]]:
  """Returns a folder, and the paths of the images under it."""
  root = epath.Path(path)
  if not root.is_dir():
    # A pipe is refused, because it cannot be read twice.
    remote = storage.is_remote(root)
    if not (root.exists() if remote else os.path.isfile(root)):
      raise ConfigError(
        f"there is no folder or file {os.fspath(path)!r}: name one image, or "
        "a folder of images"
      )
    return root.parent, [os.fsencode(root.name)]
  images = folder.ImageFolder(root, data)
  files = images.all_paths()
  if not files:
    raise ConfigError(
      f"{os.fspath(path)} and its subfolders have no image "
      f"({', '.join(images.suffixes)}): name another folder, or one image"
    )
  return root, files
