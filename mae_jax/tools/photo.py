"""Reads single photographs of any size, and pastes reconstructions into them.

Pillow reads them, because importing TensorFlow takes longer than the work. A
`Photo` knows which box of the photograph the network sees, so that
reconstructed patches can be put back in place.
"""

from __future__ import annotations

import dataclasses
import io
import os

import numpy as np
from etils import epath
from PIL import Image

from mae_jax.config import DataConfig, lookup
from mae_jax.data import image_io

Size = tuple[int, int]
FITS = ("crop", "squash")


class UnreadableError(Exception):
  """A file is no readable image; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Photo:
  """A photograph, and the box of it that a network sees.

  Attributes:
    whole: uint8 [H, W, C], rotated by its EXIF tag.
    box: top, left, height and width of the box, in fractional pixels.
    shown: uint8 [h, w, C], the box resized to the network's input.
  """

  whole: np.ndarray
  box: tuple[float, float, float, float]
  shown: np.ndarray


def read(path: epath.PathLike, channels: int, exif_rotate: bool) -> np.ndarray:
  """Reads the pixels of an image file.

  Args:
    path: a file on a disk or in a bucket.
    channels: 1 or 3; more for arrays (.npy) alone.
    exif_rotate: rotate by the EXIF tag.

  Returns:
    uint8 [H, W, C].

  Raises:
    UnreadableError: if it cannot be read.
  """
  return decode(*image_io.read_bytes(os.fsencode(path)), channels, exif_rotate)


def path_of(images: str, name: str) -> str:
  """Returns the path of an image of a source.

  Args:
    images: the folder or file of --images.
    name: the image's name in the source.
  """
  folder = epath.Path(images).is_dir()
  return os.path.join(images, name) if folder else images


def decode(
  data: bytes, failed: bytes, channels: int, exif_rotate: bool
) -> np.ndarray:
  """Decodes the bytes of a file, or raises the error of reading them."""
  shape, _, failed = image_io.inspect_image(data, failed, channels, exif_rotate)
  image, reason = image_io.load_box(
    data, failed, np.array([0, 0, *shape]), channels, exif_rotate
  )
  if reason:
    raise UnreadableError(reason.decode(errors="replace"))
  return image


def lost(path: epath.PathLike, channels: int) -> str:
  """Names what `read` drops of a file, such as alpha; "" for nothing."""
  data, failed = image_io.read_bytes(os.fsencode(path))
  if failed or data.startswith(image_io.NPY):
    return ""
  try:
    with Image.open(io.BytesIO(data)) as image:
      mode, bands = image.mode, image.getbands()
      profile = "icc_profile" in image.info
  except Exception:  # `read` reports it
    return ""
  gray = mode in ("1", "L", "LA", "I", "F") or mode.startswith("I;")
  known = {
    "its colors, as the network takes one channel": channels == 1 and not gray,
    "its alpha": "A" in bands,
    "more than 8 bits": mode == "F" or mode.startswith("I"),
    "its color profile": profile,
  }
  return ", ".join(text for text, is_so in known.items() if is_so)


def fit(image: np.ndarray, data: DataConfig, how: str = "crop") -> Photo:
  """Fits a photograph to the network's input size.

  Args:
    image: uint8 [H, W, C].
    data: size of images and the center crop of evaluation.
    how: "crop", the middle, as in evaluation, or "squash", all of it, which
      changes the aspect.
  """
  height, width = image.shape[:2]
  if how == "squash":
    box = (0.0, 0.0, float(height), float(width))
  else:
    lookup(dict.fromkeys(FITS), how, "--fit")
    rows, columns = data.image_size
    # Pixels of the photograph for one pixel of the input.
    scale = min(
      height / round(rows / data.eval_crop),
      width / round(columns / data.eval_crop),
    )
    size = rows * scale, columns * scale
    box = ((height - size[0]) / 2, (width - size[1]) / 2, *size)
  return Photo(image, box, resize(image, data.image_size, box))


def resize(
  image: np.ndarray,
  size: Size,
  box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
  """Resizes a box of uint8 [H, W, C] to [h, w, C], bicubic with antialiasing.

  Args:
    image: the photograph.
    size: h and w; a box of this size is copied.
    box: top, left, height and width; None for all.
  """
  top, left, height, width = box or (0, 0, *image.shape[:2])
  # Rounding must not move the box over the edge.
  place = (
    max(left, 0),
    max(top, 0),
    min(left + width, image.shape[1]),
    min(top + height, image.shape[0]),
  )
  planes = (
    [image] if image.shape[-1] == 3 else np.split(image, image.shape[-1], -1)
  )
  resized = [
    np.asarray(
      Image.fromarray(plane if plane.shape[-1] == 3 else plane[..., 0]).resize(
        size[::-1], Image.Resampling.BICUBIC, box=place
      )
    ).reshape(*size, -1)
    for plane in planes
  ]
  return np.concatenate(resized, axis=-1)


def read_mask(path: epath.PathLike) -> np.ndarray:
  """Reads a mask: a picture of the photograph's size, white where missing.

  Returns:
    bool [H, W].

  Raises:
    UnreadableError: if it cannot be read.
  """
  return read(path, 1, True)[..., 0] > 127


def snap(missing: np.ndarray, photo: Photo, grid: Size) -> np.ndarray:
  """Finds the patches with missing pixels.

  Args:
    missing: bool [H, W], for the whole photograph.
    photo: the photograph.
    grid: rows and columns of patches.

  Returns:
    bool [rows, columns].
  """
  top, left, height, width = photo.box
  ends = []
  for start, extent, count, length in (
    (top, height, grid[0], missing.shape[0]),
    (left, width, grid[1], missing.shape[1]),
  ):
    edges = start + extent * np.arange(count + 1) / count
    first = np.floor(edges[:-1] + 1e-6).astype(int).clip(0, length - 1)
    last = np.ceil(edges[1:] - 1e-6).astype(int).clip(1, length)
    ends.append((first, last))
  # [H + 1, W + 1]: number of missing pixels above and to the left.
  total = np.zeros(np.add(missing.shape, 1), np.int64)
  total[1:, 1:] = missing.astype(np.int64).cumsum(0).cumsum(1)
  (y0, y1), (x0, x1) = ends
  inside = total[np.ix_(y1, x1)] - total[np.ix_(y0, x1)]
  inside += total[np.ix_(y0, x0)] - total[np.ix_(y1, x0)]
  return inside > 0


def outside(missing: np.ndarray, photo: Photo) -> bool:
  """Checks whether pixels are missing outside of the network's box."""
  top, left, height, width = photo.box
  inside = missing.copy()
  inside[
    max(int(np.floor(top + 1e-6)), 0) : int(np.ceil(top + height - 1e-6)),
    max(int(np.floor(left + 1e-6)), 0) : int(np.ceil(left + width - 1e-6)),
  ] = False
  return bool(inside.any())


def paste(photo: Photo, painted: np.ndarray, hidden: np.ndarray) -> np.ndarray:
  """Pastes reconstructed patches into the whole photograph.

  Args:
    photo: the photograph.
    painted: uint8 [h, w, C], the reconstruction.
    hidden: bool [rows, columns], the patches to paste.

  Returns:
    uint8 [H, W, C]; all other pixels are those of the photograph.
  """
  top, left, height, width = photo.box
  rows, columns = photo.whole.shape[:2]
  y0, x0 = max(int(np.floor(top)), 0), max(int(np.floor(left)), 0)
  y1 = min(int(np.ceil(top + height)), rows)
  x1 = min(int(np.ceil(left + width)), columns)
  size = y1 - y0, x1 - x0
  # For each pixel, the patch that contains its center.
  y = (np.arange(y0, y1) + 0.5 - top) / height * hidden.shape[0]
  x = (np.arange(x0, x1) + 0.5 - left) / width * hidden.shape[1]
  inside = ((y >= 0) & (y < hidden.shape[0]))[:, None] & (
    (x >= 0) & (x < hidden.shape[1])
  )[None]
  y = np.floor(y).astype(int).clip(0, hidden.shape[0] - 1)
  x = np.floor(x).astype(int).clip(0, hidden.shape[1] - 1)
  cover = (hidden[np.ix_(y, x)] & inside)[..., None]
  result = photo.whole.copy()
  part = result[y0:y1, x0:x1]
  scale = painted.shape[0] / height, painted.shape[1] / width
  box = (
    (y0 - top) * scale[0],
    (x0 - left) * scale[1],
    size[0] * scale[0],
    size[1] * scale[1],
  )
  part[...] = np.where(cover, resize(painted, size, box), part)
  return result
