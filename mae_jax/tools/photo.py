"""Reads single photographs of any size, and pastes reconstructions into them.

A `Photo` knows which box of the photograph the network sees, so that
reconstructed patches can be put back in place.
"""

import dataclasses
import io
import math
import os
from collections.abc import Iterator

import numpy as np
from etils import epath
from PIL import Image

from mae_jax.config import DataConfig, lookup
from mae_jax.data import image_io, sources
from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError

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


def open_photo(
  path: epath.PathLike, data: DataConfig, how: str = "crop"
) -> Photo:
  """Reads a photograph, as `read`, and fits it to the network, as `fit`."""
  return fit(read(path, data.channels, data.exif_rotate), data, how)


def open_photos(
  images: str,
  source: sources.Indexed,
  data: DataConfig,
  fit: str = "crop",
  *,
  first: int = 0,
  warned: int = 0,
) -> Iterator[tuple[int, str, Photo]]:
  """Reads the images one by one, and warns of unreadable ones.

  Args:
    images: the folder or file of --images.
    source: its images.
    data: how images are prepared.
    fit: a name in FITS.
    first: read the first images, this many; 0 for all, with a progress bar.
    warned: print no warnings of the first images, this many.

  Yields:
    Number, name and photograph of each readable image.

  Raises:
    ConfigError: at the end, if no image could be read.
  """
  total = min(first or source.num_examples, source.num_examples)
  any_readable = False
  with console.progress_bar(total, disable=bool(first)) as bar:
    for index in range(total):
      name = source.name(index)
      path = path_of(images, name)
      try:
        found = open_photo(path, data, fit)
      except UnreadableError as error:
        if index >= warned:
          console.warn(f"{path} cannot be read ({error}): it is left out")
      else:
        any_readable = True
        yield index, name, found
      bar.update()
  if not any_readable:
    raise ConfigError(
      f"none of the {'first ' if first else ''}{total} images can be read: the "
      "warnings above say why; mend or replace them"
    )


def path_of(images: str, name: str) -> str:
  """Returns the path of an image in --images, by its name in a source."""
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
  planes = [
    Image.fromarray(plane).resize(size[::-1], Image.Resampling.BICUBIC, place)
    for plane in np.moveaxis(image, -1, 0)
  ]
  return np.stack([np.asarray(plane) for plane in planes], axis=-1)


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
  spans = []
  for axis, count in enumerate(grid):
    start, extent = photo.box[axis], photo.box[2 + axis]
    length = missing.shape[axis]
    edges = start + extent * np.arange(count + 1) / count
    first = np.floor(edges[:-1] + 1e-6).astype(int).clip(0, length - 1)
    last = np.ceil(edges[1:] - 1e-6).astype(int).clip(1, length)
    spans.append([slice(*ends) for ends in zip(first, last, strict=True)])
  return np.array([[missing[y, x].any() for x in spans[1]] for y in spans[0]])


def outside(missing: np.ndarray, photo: Photo) -> bool:
  """Checks whether pixels are missing outside of the network's box."""
  top, left, height, width = photo.box
  inside = missing.copy()
  inside[
    max(math.floor(top + 1e-6), 0) : math.ceil(top + height - 1e-6),
    max(math.floor(left + 1e-6), 0) : math.ceil(left + width - 1e-6),
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
  ends, cells, corner, extents = [], [], [], []
  for axis, count in enumerate(hidden.shape):
    start, extent = photo.box[axis], photo.box[2 + axis]
    first = max(math.floor(start), 0)
    last = min(math.ceil(start + extent), photo.whole.shape[axis])
    # For each pixel, the patch that contains its center, from 1 to `count`.
    cell = (np.arange(first, last) + 0.5 - start) / extent * count
    cells.append(1 + np.floor(cell).astype(int).clip(-1, count))
    scale = painted.shape[axis] / extent
    corner.append((first - start) * scale)
    extents.append((last - first) * scale)
    ends.append((first, last))
  cover = np.pad(hidden, 1)[np.ix_(*cells)][..., None]
  (y0, y1), (x0, x1) = ends
  patches = resize(painted, (y1 - y0, x1 - x0), (*corner, *extents))
  result = photo.whole.copy()
  part = result[y0:y1, x0:x1]
  part[...] = np.where(cover, patches, part)
  return result
