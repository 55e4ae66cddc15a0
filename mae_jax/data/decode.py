"""One image file in a TensorFlow graph: its pixels, or why there are none.

A plain JPEG, which most images are, is decoded by TensorFlow, and only the crop
of it; everything else by Pillow, see `pixels`. An image that cannot be read is
a value like any other, so that the stream it is in keeps its length and order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from mae_jax.data import image_io

Box = Callable[[tf.Tensor], tf.Tensor]
_Result = tuple[tf.Tensor, tf.Tensor]
_STRINGS = [tf.string, tf.string]


def decode(
  record: dict[str, tf.Tensor],
  *,
  channels: int,
  exif_rotate: bool,
  box: Box | None = None,
  may_fail: bool = False,
) -> _Result:
  """Decodes an image file, or one box of it.

  Args:
    record: "image", the bytes of a file, or "file", its path.
    channels: 1 or 3, or the number of channels of .npy files.
    exif_rotate: whether the EXIF tag of orientation is followed.
    box: from the image's [height, width] to the integers top, left, height,
      width; None for the whole image.
    may_fail: whether an image that cannot be read may be an error, as the
      caller has an `map_with_fallback` of its own.

  Returns:
    uint8 [height, width, channels], and the scalar string "", or the reason why
    the image cannot be read, and then the image is a black pixel.
  """
  how = _Decoder(channels, exif_rotate, box)
  is_file = "file" in record
  given = record["file" if is_file else "image"]

  def quick(given: tf.Tensor) -> _Result:
    return how.by_either(tf.io.read_file(given) if is_file else given)

  def slow(given: tf.Tensor) -> _Result:
    if is_file:
      return how.by_pillow(
        *tf.numpy_function(image_io.read_bytes, [given], _STRINGS)
      )
    return how.by_pillow(given, tf.constant(b""))

  result = quick(given) if may_fail else map_with_fallback(given, quick, slow)
  image, reason = result
  return tf.ensure_shape(image, [None, None, channels]), reason


def map_with_fallback(
  given: Any, quick: Callable[[Any], Any], slow: Callable[[Any], Any]
) -> Any:
  """What `quick` makes of some tensors, or if that fails, what `slow` does.

  A graph has no `except`, but a data set can leave out an element that failed;
  the second is computed only if the first one is left out.
  """
  one = tf.data.Dataset.from_tensors(given)
  tried = _map(one, quick).ignore_errors(log_warning=False)
  return tried.concatenate(_map(one, slow)).take(1).get_single_element()


class _Decoder:
  """The two ways to decode the bytes of a file."""

  def __init__(self, channels: int, exif_rotate: bool, box: Box | None):
    self._channels, self._upright, self._box = channels, exif_rotate, box

  def by_either(self, data: tf.Tensor) -> _Result:
    """By TensorFlow if that gives the same; may fail."""
    shape, plain, failed = tf.cond(
      _is_plain(data, self._upright),
      lambda: (_jpeg_shape(data), tf.constant(True), tf.constant(b"")),
      lambda: self._look(data, tf.constant(b"")),
    )
    place = self._place(shape)
    return tf.cond(
      plain,
      lambda: self._by_tensorflow(data, place),
      lambda: self._load(data, failed, place),
    )

  def by_pillow(self, data: tf.Tensor, failed: tf.Tensor) -> _Result:
    """By Pillow or NumPy; never fails."""
    shape, _, failed = self._look(data, failed)
    return self._load(data, failed, self._place(shape))

  def _place(self, shape: tf.Tensor) -> tf.Tensor:
    if self._box is None:
      return tf.stack([0, 0, shape[0], shape[1]])
    return self._box(shape)

  def _by_tensorflow(self, data: tf.Tensor, place: tf.Tensor) -> _Result:
    # For gray from color Pillow's rule is followed, not the file's luma.
    quality = {
      "channels": 3 if self._channels == 3 else 0,
      # As accurate as Pillow's decoder; TensorFlow's default is a faster one.
      "dct_method": "INTEGER_ACCURATE",
    }
    if self._box is None:
      image = tf.image.decode_jpeg(data, **quality)
    else:
      image = tf.image.decode_and_crop_jpeg(data, place, **quality)
    if self._channels == 1:
      image = _rgb_to_gray(image)
    return image, tf.constant(b"")

  def _look(
    self, data: tf.Tensor, failed: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    shape, plain, failed = tf.numpy_function(
      lambda data, failed: image_io.inspect_image(
        data, failed, self._channels, self._upright
      ),
      [data, failed],
      [tf.int32, tf.bool, tf.string],
      stateful=False,
    )
    shape = tf.ensure_shape(shape, [2])
    return shape, tf.ensure_shape(plain, []), tf.ensure_shape(failed, [])

  def _load(
    self, data: tf.Tensor, failed: tf.Tensor, place: tf.Tensor
  ) -> _Result:
    image, failed = tf.numpy_function(
      lambda data, failed, place: image_io.load_box(
        data, failed, place, self._channels, self._upright
      ),
      [data, failed, place],
      [tf.uint8, tf.string],
      stateful=False,
    )
    image = tf.ensure_shape(image, [None, None, self._channels])
    return image, tf.ensure_shape(failed, [])


def _jpeg_shape(data: tf.Tensor) -> tf.Tensor:
  """Height and width; fails unless TensorFlow decodes it as Pillow does."""
  shape = tf.image.extract_jpeg_shape(data)
  count = tf.reduce_prod(tf.cast(shape[:2], tf.int64))
  known = (shape[2] == 1) | (shape[2] == 3)  # and not CMYK
  known &= count <= image_io.MAX_PIXELS
  with tf.control_dependencies([tf.debugging.Assert(known, [shape])]):
    return tf.ensure_shape(tf.identity(shape[:2]), [2])


def _is_plain(data: tf.Tensor, exif_rotate: bool) -> tf.Tensor:
  """Whether these are the bytes of a JPEG of which nothing need be asked.

  It ends as it should, and no segment beside the usual first one (APP0) stands
  before the tables, so that there is no EXIF tag. Fails for a very short file.
  """
  end = tf.strings.substr(data, tf.strings.length(data) - 2, 2)
  whole = tf.io.is_jpeg(data) & (end == b"\xff\xd9")
  if not exif_rotate:
    return whole

  def byte(place: Any) -> tf.Tensor:
    text = tf.strings.substr(data, place, 1)
    return tf.cast(tf.io.decode_raw(text, tf.uint8)[0], tf.int32)

  def second() -> tf.Tensor:
    after = 4 + 256 * byte(4) + byte(5)
    return byte(after + 1)

  marker = byte(3)
  marker = tf.cond(marker == 0xE0, second, lambda: marker)
  return whole & (marker < 0xE0)


def _rgb_to_gray(image: tf.Tensor) -> tf.Tensor:
  """Gray of uint8 [h, w, 1 or 3] as Pillow's, with which colors agree."""

  def luma() -> tf.Tensor:
    weights = tf.constant([19595, 38470, 7471])
    total = tf.reduce_sum(tf.cast(image, tf.int32) * weights, -1)
    return tf.cast((total + (1 << 15)) // (1 << 16), tf.uint8)[..., None]

  return tf.cond(tf.shape(image)[-1] == 1, lambda: image, luma)


def _map(
  dataset: tf.data.Dataset, function: Callable[[Any], Any]
) -> tf.data.Dataset:
  # Nothing here needs AutoGraph, whose conversion takes seconds.
  return dataset.map(tf.autograph.experimental.do_not_convert(function))
