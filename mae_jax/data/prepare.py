"""Prepares one image for the network as evaluation does, with Pillow.

The commands and the Python API prepare images here, without TensorFlow. The
tf.data pipeline of training has the same geometry, and kernels that round
differently: pixels differ by at most one level.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from mae_jax.config import DataConfig

Size = tuple[int, int]
FITS = ("crop", "squash")  # values of data.eval_fit
RESAMPLE = {
  "bicubic": Image.Resampling.BICUBIC,
  "bilinear": Image.Resampling.BILINEAR,
  "lanczos": Image.Resampling.LANCZOS,
}

MAX_RESIZED_PIXELS = 1 << 24  # above, only the cropped part is resized


def fit(image: np.ndarray, data: DataConfig) -> np.ndarray:
  """Resizes an image, and crops its center if `data.eval_fit` is "crop".

  The pixels are those of torchvision's Resize and CenterCrop of a Pillow image.

  Args:
    image: [H, W, C], uint8 or float32 from 0 to 255.
    data: `image_size`, `eval_fit`, `eval_crop` and `eval_resample`.

  Returns:
    [h, w, C] of `data.image_size`.
  """
  if data.eval_fit == "squash":
    return resize(image, data.image_size, how=data.eval_resample)
  height, width = image.shape[:2]
  cover = covering_size(height, width, data.image_size, data.eval_crop)
  if cover[0] * cover[1] > MAX_RESIZED_PIXELS:
    box = box_of(image.shape, data)
    return resize(image, data.image_size, box, data.eval_resample)
  top, left = map(center_offset, cover, data.image_size)
  rows, columns = data.image_size
  resized = resize(image, cover, how=data.eval_resample)
  return resized[top : top + rows, left : left + columns]


def box_of(
  shape: tuple[int, ...], data: DataConfig
) -> tuple[float, float, float, float]:
  """Returns the box of an image that `fit` shows, in fractional pixels.

  Args:
    shape: height and width of the image, first.
    data: as in `fit`.

  Returns:
    top, left, height, width.
  """
  height, width = shape[:2]
  if data.eval_fit == "squash":
    return 0.0, 0.0, float(height), float(width)
  cover = covering_size(height, width, data.image_size, data.eval_crop)
  top, left = map(center_offset, cover, data.image_size)
  rows, columns = data.image_size
  y, x = height / cover[0], width / cover[1]
  return top * y, left * x, rows * y, columns * x


def with_fit(data: DataConfig, fit: str | None) -> DataConfig:
  """Returns settings with another `eval_fit`; None keeps it."""
  return data if fit is None else dataclasses.replace(data, eval_fit=fit)


def as_code(data: DataConfig, normalized: bool = True) -> str:
  """Returns Python that prepares an image file as `fit`, without this project.

  Args:
    data: as in `fit`, and how files are read.
    normalized: whether `pixels` are normalized, or those of `fit`.

  Returns:
    The code; "" for images that Pillow cannot hold.
  """
  channels = (1,) if data.value_range else (1, 3)
  if data.channels not in channels:
    return ""
  rows, columns = data.image_size
  lines = ['image = Image.open("image.jpg")']
  if data.exif_rotate:
    lines.append("image = ImageOps.exif_transpose(image)")
  if data.value_range:
    low, high = data.value_range
    lines += [
      f"values = (np.asarray(image) - {low!r}) / {high - low!r}",
      "values = 255 * values.clip(0, 1).astype(np.float32)",
      "image = Image.fromarray(values)",
    ]
  else:
    lines += [
      'if image.mode.startswith("I;16"):',
      "  image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))",
    ]
    if data.background == "drop":
      lines.append('image = image.convert("RGB")')
    else:
      lines += [
        'colors = image.convert("RGBA")',
        f'image = Image.new("RGB", image.size, "{data.background}")',
        "image.paste(colors, mask=colors)",
      ]
    if data.channels == 1:
      lines.append('image = image.convert("L")')
  kernel = f"Image.Resampling.{RESAMPLE[data.eval_resample].name}"
  if data.eval_fit == "squash":
    lines.append(f"image = image.resize(({columns}, {rows}), {kernel})")
  else:
    high, wide = (round(side / data.eval_crop) for side in data.image_size)
    lines += [
      "w, h = image.size",
      f"tall = {high} * w >= {wide} * h",
      f"size = ({high} * w // h, {high}) if tall else ({wide}, {wide} * h // "
      "w)",
      f"image = image.resize(size, {kernel})",
      f"x, y = round((size[0] - {columns}) / 2), round((size[1] - {rows}) / 2)",
      f"image = image.crop((x, y, x + {columns}, y + {rows}))",
    ]
  shape = f"({rows}, {columns}, {data.channels})"
  clip = ".clip(0, 255)" if data.value_range else ""
  lines.append(f"pixels = np.asarray(image){clip}.reshape{shape}")
  if normalized:
    mean, std = map(list, (data.mean, data.std))
    lines.append(f"pixels = (pixels / 255 - {mean}) / {std}")
  imports = ("import numpy as np", "from PIL import Image, ImageOps", "")
  return "\n".join((*imports, *lines))


def resize(
  image: np.ndarray,
  size: Size,
  box: tuple[float, float, float, float] | None = None,
  how: str = "bicubic",
) -> np.ndarray:
  """Resizes a box of [H, W, C] to [h, w, C] with antialiasing.

  Args:
    image: uint8, or float32 from 0 to 255, which is not rounded.
    size: h and w; a box of this size is copied.
    box: top, left, height and width, in fractional pixels; None for all.
    how: a name in RESAMPLE.
  """
  top, left, height, width = box or (0, 0, *image.shape[:2])
  # Rounding must not move the box over the edge.
  place = (
    max(left, 0),
    max(top, 0),
    min(left + width, image.shape[1]),
    min(top + height, image.shape[0]),
  )

  def resized(pixels: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(picture.resize(size[::-1], RESAMPLE[how], place))

  if image.shape[-1] == 3 and image.dtype == np.uint8:
    return resized(image)
  bands = np.stack([resized(x) for x in np.moveaxis(image, -1, 0)], axis=-1)
  return bands if image.dtype == np.uint8 else bands.clip(0, 255)


def covering_size(
  height: Any,
  width: Any,
  size: Size,
  keep: float,
  choose: Callable[[Any, Size, Size], Any] = lambda first, a, b: (
    a if first else b
  ),
) -> tuple[Any, Any]:
  """Returns the smallest size of an image's aspect that covers size / keep.

  For a square `size` the shorter side becomes `round(size / keep)`, and the
  longer side is rounded down, as in torchvision's Resize.

  Args:
    height: an integer, or a tensor of integers.
    width: of the same type.
    size: height and width of the center crop.
    keep: the fraction of the resized image's sides to keep, in (0, 1].
    choose: returns its second argument if the first is true, else the third.

  Returns:
    height, width.
  """
  wanted_h, wanted_w = round(size[0] / keep), round(size[1] / keep)
  return choose(
    wanted_h * width >= wanted_w * height,
    (wanted_h, width * wanted_h // height),
    (height * wanted_w // width, wanted_w),
  )


def center_offset(cover: int, size: int) -> int:
  """Returns torchvision's CenterCrop offset: half the margin, half to even."""
  return int(np.rint((cover - size) / 2))
