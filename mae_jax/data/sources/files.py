"""Image files as a tool is given them: one, or all under a folder.

Folders mean nothing here. What counts as an image, and what is passed over,
`listing` says.
"""

from __future__ import annotations

import os

import numpy as np
import tensorflow as tf
from etils import epath

from mae_jax.config import DataConfig
from mae_jax.data.sources import base, folder
from mae_jax.utils import storage
from mae_jax.utils.errors import ConfigError


def open_files(path: epath.PathLike, data: DataConfig) -> base.Indexed:
  """The images under a folder in the order of their paths, or one file.

  Args:
    path: the folder or file, on a disk or in a bucket.
    data: with `channels` other than 1 and 3, only arrays (.npy) are looked for.

  Returns:
    The source, without labels. The `name` of an image is its path under the
    folder, as it is; of one file the file's name.

  Raises:
    ConfigError: if there is no such folder or file, or it holds no image.
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

  return base.Indexed(len(files), None, load, identity, name=name)


def _find_files(
  path: epath.PathLike, data: DataConfig
) -> tuple[epath.PathLike, list[bytes]]:
  """A folder, and the paths under it."""
  root = epath.Path(path)
  if not root.is_dir():
    # Of a pipe there is no second reading.
    remote = storage.is_remote(root)
    if not (root.exists() if remote else os.path.isfile(root)):
      raise ConfigError(
        f"there is no folder or file {os.fspath(path)!r}: name one image, or "
        "a folder of them"
      )
    return root.parent, [os.fsencode(root.name)]
  images = folder.ImageFolder(root, data)
  files = images.whatever_folder()
  if not files:
    raise ConfigError(
      f"{os.fspath(path)} has no image ({', '.join(images.suffixes)}), and "
      "none is in its folders: name another folder, or one image"
    )
  return root, files
