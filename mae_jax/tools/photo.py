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
from scipy import ndimage

from mae_jax.config import DataConfig
from mae_jax.data import image_files, image_headers, image_io, prepare
from mae_jax.data.image_files import Images
from mae_jax.data.image_headers import Reading, UnreadableError
from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError

Size = tuple[int, int]
SOFT_EDGE = 3  # pixels around missing ones that are mixed


@dataclasses.dataclass(frozen=True)
class Photo:
  """A photograph, and the box of it that a network sees.

  Attributes:
    whole: uint8 [H, W, C], rotated by its EXIF tag.
    box: top, left, height and width of the box, in fractional pixels.
    shown: [h, w, C], the box resized to the network's input: uint8, or float32
      from 0 to 255 with `data.value_range`.
  """

  whole: np.ndarray
  box: tuple[float, float, float, float]
  shown: np.ndarray

  @property
  def picture(self) -> np.ndarray:
    """`shown` as uint8."""
    return image_io.to_bytes(self.shown)


def open_photo(path: epath.PathLike, data: DataConfig) -> Photo:
  """Reads a photograph, and fits it to the network, as `fit`."""
  return fit(image_files.read(path, Reading.of(data)), data)


def open_photos(
  images: Images,
  data: DataConfig,
  *,
  first: int = 0,
  warned: int = 0,
) -> Iterator[tuple[int, str, Photo]]:
  """Reads the images one by one, and warns of unreadable ones.

  Args:
    images: the images.
    data: how images are prepared.
    first: read the first images, this many; 0 for all, with a progress bar.
    warned: print no warnings of the first images, this many.

  Yields:
    Number, name and photograph of each readable image.

  Raises:
    ConfigError: at the end, if no image could be read.
  """
  total = min(first or len(images.names), len(images.names))
  any_readable = False
  with console.progress_bar(total, disable=bool(first)) as bar:
    for index in range(total):
      name = images.names[index]
      try:
        found = fit(images.read(index), data)
      except UnreadableError as error:
        if index >= warned:
          console.warn(f"{name} cannot be read ({error}): it is left out")
      else:
        any_readable = True
        image_headers.print_notes()
        yield index, name, found
      bar.update()
  if not any_readable:
    raise ConfigError(
      f"none of the {'first ' if first else ''}{total} images can be read: the "
      "warnings above say why; fix or replace them"
    )


def path_of(images: str, name: str) -> str:
  """Returns the path of an image in --images, by its name in a source."""
  folder = epath.Path(images).is_dir()
  return os.path.join(images, name) if folder else images


def lost(path: epath.PathLike, channels: int) -> str:
  """Names what `read` drops of a file, such as alpha; "" for nothing."""
  data, failed = image_io.read_bytes(os.fsencode(path))
  if failed or data.startswith(image_headers.NPY):
    return ""
  try:
    with Image.open(io.BytesIO(data)) as image:
      mode, alpha = image.mode, image.has_transparency_data
      profile = "icc_profile" in image.info
  except Exception:  # `read` reports it
    return ""
  gray = mode in ("1", "L", "LA", "I", "F") or mode.startswith("I;")
  known = {
    "its colors, as the network takes one channel": channels == 1 and not gray,
    "its alpha": alpha,
    "more than 8 bits": mode == "F" or mode.startswith("I"),
    "its color profile": profile,
  }
  return ", ".join(text for text, is_so in known.items() if is_so)


def fit(image: np.ndarray, data: DataConfig) -> Photo:
  """Fits a photograph [H, W, C] to the network as `prepare.fit`."""
  shown, box = prepare.fit(image, data), prepare.box_of(image.shape, data)
  return Photo(image_io.to_bytes(image), box, shown)


def read_mask(path: epath.PathLike) -> np.ndarray:
  """Reads a mask: a picture of the photograph's size, white where missing.

  If parts of it are transparent, the others may be painted white and black, or
  in one color, which is where pixels are missing. A picture of more colors is a
  photograph of which the missing part was erased.

  Returns:
    bool [H, W].

  Raises:
    UnreadableError: if it cannot be read.
  """
  how = Reading(3, True, background="drop", alpha=True)
  pixels = image_files.read(path, how)
  colors = pixels[..., :3]
  gray = image_io.with_channels(colors, 1)[..., 0]
  white = gray > 127
  seen = (pixels[..., 3:] > 127).all(axis=-1)  # more opaque than transparent
  if seen.all() or not seen.any():
    return white & seen
  # Edges may be soft.
  extreme = (np.abs(gray[seen] - 127.5) > 96).mean() > 0.9
  if extreme and 0 < white[seen].mean() < 1:
    return white & seen
  low, high = np.percentile(colors[seen], (5, 95), axis=0)
  return seen if (high - low).max() <= 32 else ~seen


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


def cover_patches(photo: Photo, hidden: np.ndarray) -> np.ndarray:
  """Marks the pixels of a photograph whose centers lie in these patches.

  Args:
    photo: the photograph.
    hidden: bool [rows, columns], the patches.

  Returns:
    bool [H, W].
  """
  cells = []
  for axis, count in enumerate(hidden.shape):
    start, extent = photo.box[axis], photo.box[2 + axis]
    # For each pixel, the patch that contains its center, from 1 to `count`.
    center = np.arange(photo.whole.shape[axis]) + 0.5
    cell = np.floor((center - start) / extent * count)
    cells.append(1 + cell.astype(int).clip(-1, count))
  cover: np.ndarray = np.pad(hidden, 1)[np.ix_(*cells)]
  return cover


def soften(missing: np.ndarray) -> np.ndarray:
  """Returns the weights with which a reconstruction covers missing pixels.

  Args:
    missing: bool [H, W].

  Returns:
    [H, W]: 1 for missing pixels, and less for each pixel of distance; 0 from
    `SOFT_EDGE` + 1 pixels on.
  """
  distance = ndimage.distance_transform_edt(~missing)
  weights: np.ndarray = np.clip(1 - distance / (SOFT_EDGE + 1), 0, 1)
  return weights


def paste(photo: Photo, painted: np.ndarray, cover: np.ndarray) -> np.ndarray:
  """Pastes a reconstruction into the whole photograph.

  Args:
    photo: the photograph.
    painted: uint8 [h, w, C], the reconstruction.
    cover: [H, W], 1 where the reconstruction replaces the photograph, 0 where
      the photograph stays, and between for a mixture.

  Returns:
    uint8 [H, W, C].
  """
  ends, corner, extents = [], [], []
  for axis in (0, 1):
    start, extent = photo.box[axis], photo.box[2 + axis]
    first = max(math.floor(start), 0)
    last = min(math.ceil(start + extent), photo.whole.shape[axis])
    scale = painted.shape[axis] / extent
    corner.append((first - start) * scale)
    extents.append((last - first) * scale)
    ends.append(slice(first, last))
  box = tuple(ends)
  size = (ends[0].stop - ends[0].start, ends[1].stop - ends[1].start)
  fitted = prepare.resize(painted, size, (*corner, *extents))
  result = photo.whole.copy()
  part, weights = result[box], cover[box][..., None]
  part[...] = np.round(part + weights * (fitted.astype(np.float64) - part))
  return result
