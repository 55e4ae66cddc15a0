"""Prepares one image for the network as evaluation does, with Pillow.

The commands and the Python API prepare images here, without TensorFlow. The
tf.data pipeline of training has the same geometry, and kernels that round
differently: pixels differ by at most one level.
"""

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
    image: uint8 [H, W, C].
    data: `image_size`, `eval_fit`, `eval_crop` and `eval_resample`.

  Returns:
    uint8 [h, w, C] of `data.image_size`.
  """
  if data.eval_fit == "squash":
    return resize(image, data.image_size, how=data.eval_resample)
  height, width = image.shape[:2]
  cover = covering_size(height, width, data.image_size, data.eval_crop)
  top, left = map(center_offset, cover, data.image_size)
  rows, columns = data.image_size
  if cover[0] * cover[1] > MAX_RESIZED_PIXELS:
    y, x = height / cover[0], width / cover[1]
    box = (top * y, left * x, rows * y, columns * x)
    return resize(image, data.image_size, box, data.eval_resample)
  resized = resize(image, cover, how=data.eval_resample)
  return resized[top : top + rows, left : left + columns]


def resize(
  image: np.ndarray,
  size: Size,
  box: tuple[float, float, float, float] | None = None,
  how: str = "bicubic",
) -> np.ndarray:
  """Resizes a box of uint8 [H, W, C] to [h, w, C] with antialiasing.

  Args:
    image: the image.
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

  if image.shape[-1] == 3:
    return resized(image)
  return np.stack([resized(x) for x in np.moveaxis(image, -1, 0)], axis=-1)


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
