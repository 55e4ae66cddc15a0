"""Image files that a command or the API is given, read without TensorFlow."""

import dataclasses
import os
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from mae_jax.config import DataConfig
from mae_jax.data import image_headers, image_io
from mae_jax.data.image_folder import ImageFolder
from mae_jax.data.image_headers import UnreadableError
from mae_jax.utils import storage
from mae_jax.utils.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Images:
  """Images to run a network over.

  Attributes:
    names: the name of each image.
    read: function from an index to uint8 [H, W, C]; raises UnreadableError.
  """

  names: Sequence[str]
  read: Callable[[int], np.ndarray]


def open_images(path: epath.PathLike, data: DataConfig) -> Images:
  """Opens one image file, or all images under a folder, sorted by path.

  Folders are not classes here. `listing` decides which files are images.

  Args:
    path: the folder or file, on a disk or in a bucket.
    data: settings of reading files. If `channels` is neither 1 nor 3, only
      arrays (.npy) are used.

  Returns:
    The images. The name of each is its path under the folder, or the name of
    the single file.

  Raises:
    ConfigError: if there is no such folder or file, or it has no image.
  """
  with storage.os_errors(path):
    root, names = _find_files(path, data)

  def read_one(index: int) -> np.ndarray:
    file = os.path.join(root, names[index])
    return read(file, image_headers.Reading.of(data))

  return Images(names, read_one)


def _find_files(
  path: epath.PathLike, data: DataConfig
) -> tuple[epath.PathLike, list[str]]:
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
    return root.parent, [root.name]
  images = ImageFolder(root, data)
  files = images.all_paths()
  if not files:
    raise ConfigError(
      f"{os.fspath(path)} and its subfolders have no image "
      f"({', '.join(images.suffixes)}): name another folder, or one image"
    )
  return root, [os.fsdecode(file) for file in files]


def read(path: epath.PathLike, how: image_headers.Reading) -> np.ndarray:
  """Reads the pixels of an image file.

  Args:
    path: a file on a disk or in a bucket.
    how: the settings.

  Returns:
    uint8 [H, W, C].

  Raises:
    UnreadableError: if it cannot be read.
  """
  if os.path.exists(path) and not os.path.isfile(path):
    raise UnreadableError("it is a folder, a pipe or a device, not a file")
  return decode(*image_io.read_bytes(os.fsencode(path)), how)


def decode(
  data: bytes, failed: bytes, how: image_headers.Reading
) -> np.ndarray:
  """Decodes the bytes of a file, or raises the error of reading them."""
  shape, _, failed = image_io.inspect_image(data, failed, how)
  box = np.array([0, 0, *shape])
  image, reason = image_io.load_box(data, failed, box, how)
  if reason:
    raise UnreadableError(reason.decode(errors="replace"))
  return image
