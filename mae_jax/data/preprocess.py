"""Image preprocessing: random and center crops, flips and color changes.

Random functions take uniform draws instead of a seed. The pipeline samples the
draws of a whole step at once, and a test can inject its own. Image files are
processed one at a time, and small arrays a batch at a time, because their work
is smaller than the cost of a call.

Pixels are [H, W, C] throughout, uint8 or float32 from 0 to 255; the train step
normalizes them.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from mae_jax.config import DataConfig
from mae_jax.data import decode, image_headers, prepare, resample
from mae_jax.data.tf_setup import tf

TRIES = 10  # as torchvision's RandomResizedCrop
CROP_DRAWS = 2 * TRIES + 2  # (area, aspect) per try, then top and left

# Kernels of ScaleAndTranslate, by the values of data.eval_resample.
_KERNELS = {
  "bicubic": "keyscubic",
  "bilinear": "triangle",
  "lanczos": "lanczos3",
}

Size = tuple[int, int]
Range = tuple[float, float]


def crop_box(
  height: tf.Tensor,
  width: tf.Tensor,
  draws: tf.Tensor,
  scale: Range,
  ratio: Range,
  clipped: bool = False,
  fixed: float = 0.0,
) -> tf.Tensor:
  """Samples a box with the distribution of torchvision's RandomResizedCrop.

  Takes the first of ten boxes that fits the image. Areas are uniform in `scale`
  times the image's area, aspects log-uniform in `ratio`, positions uniform. If
  no box fits, takes the largest central box whose aspect is in `ratio`.

  Args:
    height: integer [...], at least 1.
    width: integer [...], at least 1.
    draws: [..., CROP_DRAWS] uniform in [0, 1).
    scale: smallest and largest fraction of the image's area.
    ratio: smallest and largest width / height.
    clipped: whether to always take the first box, with its sides clipped to the
      image (the reference's linear probe).
    fixed: if above 0, the sides of every box are this fraction of the largest
      central box, and only the position is random. Resized, this is a random
      crop of fixed size from the resized image.

  Returns:
    int32 [..., 4]: top, left, height, width; never empty, inside the image.
  """
  # float64: the rounding below must not depend on the order of sums.
  full_h, full_w = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
  draws = tf.cast(draws, tf.float64)
  central_h = tf.minimum(full_h, tf.round(full_w / ratio[0]))
  central_w = tf.minimum(full_w, tf.round(full_h * ratio[1]))
  # A one-pixel side must not round to 0 under an extreme ratio.
  central_h, central_w = tf.maximum(central_h, 1), tf.maximum(central_w, 1)
  if fixed:
    widths = tf.maximum(tf.round(fixed * central_w), 1)[..., None]
    heights = tf.maximum(tf.round(fixed * central_h), 1)[..., None]
  else:
    areas, aspects = draws[..., :TRIES], draws[..., TRIES : 2 * TRIES]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspects = tf.exp(low + (high - low) * aspects)
    areas = scale[0] + (scale[1] - scale[0]) * areas
    areas *= (full_h * full_w)[..., None]
    widths = tf.round(tf.sqrt(areas * aspects))  # [..., TRIES]
    heights = tf.round(tf.sqrt(areas / aspects))
  if clipped:
    widths = tf.clip_by_value(widths, 1, full_w[..., None])
    heights = tf.clip_by_value(heights, 1, full_h[..., None])
  fits = (widths > 0) & (widths <= full_w[..., None])
  fits &= (heights > 0) & (heights <= full_h[..., None])
  first = tf.argmax(fits, axis=-1)[..., None]
  box_h = tf.gather(heights, first, axis=-1, batch_dims=first.shape.rank - 1)
  box_w = tf.gather(widths, first, axis=-1, batch_dims=first.shape.rank - 1)
  box_h, box_w = box_h[..., 0], box_w[..., 0]
  top = tf.floor(draws[..., -2] * (full_h - box_h + 1))
  left = tf.floor(draws[..., -1] * (full_w - box_w + 1))
  sampled = tf.stack([top, left, box_h, box_w], axis=-1)
  central = tf.stack(
    [
      tf.math.floordiv(full_h - central_h, 2),
      tf.math.floordiv(full_w - central_w, 2),
      central_h,
      central_w,
    ],
    axis=-1,
  )
  any_fits = tf.reduce_any(fits, axis=-1)[..., None]
  return tf.cast(tf.where(any_fits, sampled, central), tf.int32)


# A tf.function, because each evaluation builds a new stream: the trace is
# reused.
@tf.function(autograph=False)
def random_resized_crop(
  record: dict[str, tf.Tensor],
  draws: tf.Tensor,
  *,
  size: Size,
  reading: image_headers.Reading,
  may_fail: bool = False,
  **crop: Any,
) -> tuple[tf.Tensor, tf.Tensor]:
  """Crops an image file to `crop_box` and resizes the crop, bicubic.

  Only the crop of a JPEG is decoded. `size` is the height and width of the
  result; `crop` has the settings of `crop_box`; `reading` and the others are
  arguments of `decode.decode`.

  Returns:
    Pixels [height, width, channels], and "" or why the image cannot be read.
  """

  def box(shape: tf.Tensor) -> tf.Tensor:
    return crop_box(shape[0], shape[1], draws, **crop)

  image, reason = decode.decode(record, reading, box=box, may_fail=may_fail)
  return _resize(image, size), reason


def random_resized_crop_arrays(
  images: tf.Tensor, draws: tf.Tensor, *, size: Size, **crop: Any
) -> tf.Tensor:
  """Applies `random_resized_crop` to uint8 [n, H, W, C], by [n, CROP_DRAWS]."""
  shape = tf.shape(images)
  full = tf.ones_like(draws[:, 0], tf.int32)
  boxes = crop_box(full * shape[1], full * shape[2], draws, **crop)
  return resample.resize_boxes(images, boxes, size)


def random_flip(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
  """Mirrors an image [H, W, C], or images [n, H, W, C], where draws < 0.5."""
  mirror = draws < 0.5
  if len(images.shape) == 3:
    # tf.where takes ten times as long to broadcast one value over all pixels.
    return tf.cond(
      mirror, lambda: tf.reverse(images, axis=[-2]), lambda: images
    )
  mirrored = tf.reverse(images, axis=[-2])
  return tf.where(mirror[..., None, None, None], mirrored, images)


def map_pillow(
  function: Callable[[np.ndarray, np.ndarray], np.ndarray],
  images: tf.Tensor,
  draws: tf.Tensor,
) -> tf.Tensor:
  """Applies a function of `augment` to one image or a batch.

  Args:
    function: maps (image, draws) to an image of the same shape.
    images: uint8 [H, W, C] or [n, H, W, C].
    draws: [d] or [n, d].
  """

  def each(images: np.ndarray, draws: np.ndarray) -> np.ndarray:
    if images.ndim == 3:
      return function(images, draws)
    return np.stack(list(map(function, images, draws)))

  augmented = tf.numpy_function(each, [images, draws], tf.uint8, stateful=False)
  return tf.ensure_shape(augmented, images.shape)


@tf.function(autograph=False)
def fit(
  record: dict[str, tf.Tensor],
  *,
  size: Size,
  keep: float,
  reading: image_headers.Reading,
  squash: bool = False,
  how: str = "bicubic",
) -> tuple[tf.Tensor, tf.Tensor]:
  """Fits an image file to the network as `prepare.fit`, in a graph.

  Args:
    record: as in `decode.decode`.
    size: height and width of the result.
    keep: the fraction of the resized image's sides that the center crop keeps,
      in (0, 1].
    reading: as in `decode.decode`.
    squash: resize to `size` without keeping the aspect, instead of a crop.
    how: a name in `prepare.RESAMPLE`.

  Returns:
    Pixels [height, width, channels], and "" or why the image cannot be read.
    An image of this size already, of which all is kept, is unchanged.
  """
  image, reason = decode.decode(record, reading)
  kernel = _KERNELS[how]
  if squash:
    return _resize(image, size, kernel), reason
  shape = tf.cast(tf.shape(image), tf.int64)
  cover = covering_size(shape[0], shape[1], size, keep)
  top, left = map(_center_offset, cover, size)

  def whole() -> tf.Tensor:
    resized = _resize(image, tf.cast(tf.stack(cover), tf.int32), kernel)
    return resized[top : top + size[0], left : left + size[1]]

  def window() -> tf.Tensor:
    # Equal up to rounding, for an image that would be very large when resized.
    # It is cropped around the window first: float32 positions are exact only
    # up to 2^24.
    scale = tf.stack(cover) / shape[:2]  # float64
    begin = tf.cast(tf.stack([top, left]), tf.float64)
    margin = 4 * tf.maximum(1 / scale, 1)  # the kernels reach less far
    start = tf.maximum(tf.floor(begin / scale - margin), 0)
    stop = tf.math.ceil((begin + size) / scale + margin)
    first, last = tf.cast(start, tf.int64), tf.cast(stop, tf.int64)
    resized = tf.raw_ops.ScaleAndTranslate(
      images=image[None, first[0] : last[0], first[1] : last[1]],
      size=size,
      scale=tf.cast(scale, tf.float32),
      translation=tf.cast(start * scale - begin, tf.float32),
      kernel_type=kernel,
      antialias=True,
    )[0]
    return _to_dtype(resized, image.dtype)

  too_large = cover[0] * cover[1] > prepare.MAX_RESIZED_PIXELS
  return tf.cond(too_large, window, whole), reason


def fit_settings(data: DataConfig) -> dict[str, Any]:
  """Returns the arguments of `fit` and `fit_arrays` that settings define."""
  return {
    "size": data.image_size,
    "keep": data.eval_crop,
    "squash": data.eval_fit == "squash",
    "how": data.eval_resample,
  }


def fit_arrays(
  images: tf.Tensor,
  *,
  size: Size,
  keep: float,
  squash: bool = False,
  how: str = "bicubic",
) -> tf.Tensor:
  """Applies `fit` to uint8 [n, H, W, C] with static H and W."""
  height, width = images.shape[1:3]
  cover, corner = size, (0, 0)
  if not squash:
    cover = prepare.covering_size(height, width, size, keep)
    top, left = map(prepare.center_offset, cover, size)
    corner = top, left
  whole = tf.constant([[0, 0, height, width]])
  boxes = tf.repeat(whole, tf.shape(images)[0], axis=0)
  return resample.resize_boxes(images, boxes, cover, (*corner, *size), how)


def covering_size(
  height: tf.Tensor, width: tf.Tensor, size: Size, keep: float
) -> tuple[tf.Tensor, tf.Tensor]:
  """Computes `prepare.covering_size` of int64 scalars."""

  def choose(first: tf.Tensor, a: Any, b: Any) -> Any:
    as_tensors = [tuple(tf.cast(x, tf.int64) for x in pair) for pair in (a, b)]
    return tf.cond(first, lambda: as_tensors[0], lambda: as_tensors[1])

  return prepare.covering_size(height, width, size, keep, choose)


def _resize(
  image: tf.Tensor, size: Size | tf.Tensor, kernel: str = "keyscubic"
) -> tf.Tensor:
  """Resizes with antialiasing, as Pillow does.

  The values are those of `tf.image.resize`, except in ties, in a third to 0.9
  of the time, depending on the machine. Each pass reshapes the image to one
  column of many channels, which the kernel adds up as whole rows.
  """
  shape, channels = tf.shape(image), image.shape[-1]
  height, width = size[0], size[1]
  rows = _resize_rows(image, shape[0], height, kernel)  # [height, w * C]
  columns = tf.transpose(
    tf.reshape(rows, [height, shape[1], channels]), [1, 0, 2]
  )
  pixels = _resize_rows(columns, shape[1], width, kernel)  # [width, h * C]
  pixels = _to_dtype(pixels, image.dtype)
  pixels = tf.reshape(pixels, [width, height, channels])
  return tf.transpose(pixels, [1, 0, 2])


def _to_dtype(pixels: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
  if dtype == tf.float32:
    return tf.clip_by_value(pixels, 0, 255)
  return tf.cast(tf.clip_by_value(tf.round(pixels), 0, 255), tf.uint8)


def _resize_rows(
  image: tf.Tensor, length: tf.Tensor, size: int | tf.Tensor, kernel: str
) -> tf.Tensor:
  """Resizes the first axis of [length, n, C] to [size, n * C], float32."""
  scale = tf.cast(size, tf.float32) / tf.cast(length, tf.float32)
  resized = tf.raw_ops.ScaleAndTranslate(
    images=tf.reshape(image, [1, length, 1, -1]),
    size=tf.stack([size, 1]),
    scale=tf.stack([scale, 1.0]),
    translation=[0.0, 0.0],
    kernel_type=kernel,
    antialias=True,
  )
  return tf.reshape(resized, [size, -1])


def _center_offset(cover: tf.Tensor, size: int) -> tf.Tensor:
  """Computes `prepare.center_offset` of an int64 scalar."""
  return tf.cast(tf.round(tf.cast(cover - size, tf.float64) / 2), tf.int64)
