"""Pillow's resampling of batches of small arrays, bit for bit.

`tf.image.resize` takes one box at a time, and for 8 x 8 images the call costs
many times as much as the arithmetic. Here each example's two passes are matrix
products with its own weights. As in Pillow, the weights are multiples of 2^-22
and each pass is rounded to bytes. So every float64 sum is exact, and the result
cannot depend on the batch that contains an image.
"""

import numpy as np

from mae_jax.data.tf_setup import tf

_ONE = float(1 << 22)  # Pillow's PRECISION_BITS for 8-bit images


def resize_boxes(
  images: tf.Tensor,
  boxes: tf.Tensor,
  size: tuple[int, int],
  window: tuple[int, int, int, int] | None = None,
  how: str = "bicubic",
) -> tf.Tensor:
  """Crops each image to its box and resizes the crop, with antialiasing.

  Args:
    images: uint8 [n, H, W, C].
    boxes: integers [n, 4]: top, left, height, width, inside the image.
    size: height and width of the resized crop.
    window: top, left, height and width of the part of the resized crop to
      compute; None for all of it.
    how: a name in `prepare.RESAMPLE`.

  Returns:
    uint8 [n, h, w, C], equal to Pillow's `crop(box).resize(size, how)` with
    columns resized first. Since Pillow 13 this is not its order for every size.
  """
  top, left, height, width = window or (0, 0, *size)
  shape = tf.shape(images)
  rows = _weights(boxes[:, 0], boxes[:, 2], shape[1], size[0], top, height, how)
  columns = _weights(
    boxes[:, 1], boxes[:, 3], shape[2], size[1], left, width, how
  )
  values = tf.cast(images, tf.float64)
  values = _to_byte(tf.einsum("nxw,nhwc->nhxc", columns, values))
  values = _to_byte(tf.einsum("nyh,nhxc->nyxc", rows, values))
  return tf.cast(values, tf.uint8)


def _weights(
  start: tf.Tensor,
  extent: tf.Tensor,
  length: tf.Tensor,
  size: int,
  first: int,
  count: int,
  how: str,
) -> tf.Tensor:
  """Computes whole weights * 2^22, float64 [n, count, length], of one axis.

  A box from `start` [n] with `extent` [n] pixels is resized to `size` pixels;
  the weights are those of the resized pixels first..first + count - 1.
  """
  extent = tf.cast(extent, tf.float64)[:, None, None]
  scale = extent / size
  stretch = tf.maximum(scale, 1.0)  # > 1 widens the kernel: antialiasing
  target = tf.range(first, first + count)[None, :, None]
  center = (tf.cast(target, tf.float64) + 0.5) * scale
  source = (
    tf.range(length)[None, None, :] - tf.cast(start, tf.int32)[:, None, None]
  )
  source = tf.cast(source, tf.float64)
  weights = _KERNELS[how]((source - center + 0.5) / stretch)
  inside = (source >= 0) & (source < extent)
  weights = tf.where(inside, weights, 0.0)
  weights /= tf.reduce_sum(weights, axis=-1, keepdims=True)
  # Pillow rounds half away from zero; tf.round rounds half to even.
  return tf.sign(weights) * tf.floor(tf.abs(weights) * _ONE + 0.5)


def _cubic(x: tf.Tensor) -> tf.Tensor:
  """Evaluates Keys' cubic kernel with a = -0.5."""
  x = tf.abs(x)
  near = (1.5 * x - 2.5) * x * x + 1
  far = (((x - 5) * x + 8) * x - 4) * -0.5
  return tf.where(x < 1, near, tf.where(x < 2, far, 0.0))


def _lanczos(x: tf.Tensor) -> tf.Tensor:
  """Evaluates the Lanczos kernel of three lobes."""
  return tf.where(tf.abs(x) < 3, _sinc(x) * _sinc(x / 3), 0.0)


def _sinc(x: tf.Tensor) -> tf.Tensor:
  wide = np.pi * x
  return tf.where(x == 0, 1.0, tf.sin(wide) / tf.where(x == 0, 1.0, wide))


_KERNELS = {
  "bicubic": _cubic,
  "bilinear": lambda x: tf.maximum(1 - tf.abs(x), 0.0),
  "lanczos": _lanczos,
}


def _to_byte(values: tf.Tensor) -> tf.Tensor:
  return tf.clip_by_value(tf.floor(values / _ONE + 0.5), 0.0, 255.0)
