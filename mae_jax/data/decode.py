"""Decoding of image files in a TensorFlow graph.

TensorFlow decodes plain JPEGs, which most images are, and only the crop that is
needed. Pillow decodes everything else, see `image_io`. An unreadable image is
returned with a reason and not raised, so that the stream it is in keeps its
length and order.
"""

from collections.abc import Callable
from typing import Any

from mae_jax.data import image_headers, image_io
from mae_jax.data.tf_setup import tf

Box = Callable[[tf.Tensor], tf.Tensor]
_Result = tuple[tf.Tensor, tf.Tensor]
_PLACES = ("image", "file", "offset", "length")  # arguments of `read_bytes`


def decode(
  record: dict[str, tf.Tensor],
  how: image_headers.Reading,
  *,
  box: Box | None = None,
  may_fail: bool = False,
) -> _Result:
  """Decodes an image file, or one box of it.

  Args:
    record: as `sources.base` defines it.
    how: the settings; `channels` may be any number for .npy files.
    box: function from the image's [height, width] to integers [4]: top, left,
      height, width. None decodes the whole image.
    may_fail: whether an unreadable image may raise an error in the graph, for a
      caller that handles it with `map_with_fallback`.

  Returns:
    The image [height, width, channels] as `image_io.load_box`, and a scalar
    string: "", or the reason why the image cannot be read. Then the image is
    one black pixel.
  """
  decoder = _Decoder(how, box)
  given = {name: record[name] for name in _PLACES if name in record}
  is_whole = given.keys() == {"file"}

  def fast(given: dict[str, tf.Tensor]) -> _Result:
    data = tf.io.read_file(given["file"]) if is_whole else read(given)[0]
    return decoder.decode_fast(data)

  def safe(given: dict[str, tf.Tensor]) -> _Result:
    return decoder.decode_safe(*read(given))

  result = fast(given) if may_fail else map_with_fallback(given, fast, safe)
  image, reason = result
  return tf.ensure_shape(image, [None, None, how.channels]), reason


def read(record: dict[str, tf.Tensor]) -> _Result:
  """Reads the bytes of a record's image file, without raising an error.

  Returns:
    The bytes, and "" or the reason why they cannot be read.
  """
  if "file" not in record:
    return record["image"], tf.constant(b"")
  place = [record[name] for name in _PLACES if name in record]
  found = tf.numpy_function(image_io.read_bytes, place, [tf.string, tf.string])
  return tf.ensure_shape(found[0], []), tf.ensure_shape(found[1], [])


def map_with_fallback(
  given: Any, fast: Callable[[Any], Any], safe: Callable[[Any], Any]
) -> Any:
  """Returns `fast(given)`, or `safe(given)` if the former raises an error.

  A graph has no `except`, but a tf.data dataset can drop an element that
  failed. `safe` is computed only if the result of `fast` was dropped.
  """
  one = tf.data.Dataset.from_tensors(given)
  tried = _map(one, fast).ignore_errors(log_warning=False)
  return tried.concatenate(_map(one, safe)).take(1).get_single_element()


class _Decoder:
  """Two ways to decode the bytes of a file: fast, or without errors."""

  def __init__(self, how: image_headers.Reading, box: Box | None):
    self._how, self._box = how, box

  def decode_fast(self, data: tf.Tensor) -> _Result:
    """Uses TensorFlow where its pixels equal Pillow's; may raise an error."""
    if self._how.value_range:
      return self.decode_safe(data, tf.constant(b""))
    shape, plain, reason = tf.cond(
      _is_plain_jpeg(data),
      lambda: (self._jpeg_shape(data), tf.constant(True), tf.constant(b"")),
      lambda: self._inspect(data, tf.constant(b"")),
    )
    box = self._box_of(shape)
    return tf.cond(
      plain,
      lambda: self._load_with_tensorflow(data, box),
      lambda: self._load_with_pillow(data, reason, box),
    )

  def decode_safe(self, data: tf.Tensor, reason: tf.Tensor) -> _Result:
    """Uses Pillow or NumPy; never raises an error."""
    shape, _, reason = self._inspect(data, reason)
    return self._load_with_pillow(data, reason, self._box_of(shape))

  def _box_of(self, shape: tf.Tensor) -> tf.Tensor:
    if self._box is None:
      return tf.stack([0, 0, shape[0], shape[1]])
    return self._box(shape)

  def _load_with_tensorflow(self, data: tf.Tensor, box: tf.Tensor) -> _Result:
    options = {
      # Gray from color follows Pillow's weights below, not the JPEG's luma.
      "channels": 3 if self._how.channels == 3 else 0,
      # As accurate as Pillow's decoder; TensorFlow's default is faster.
      "dct_method": "INTEGER_ACCURATE",
    }
    if self._box is None:
      image = tf.image.decode_jpeg(data, **options)
    else:
      image = tf.image.decode_and_crop_jpeg(data, box, **options)
    if self._how.channels == 1:
      image = _rgb_to_gray(image)
    return image, tf.constant(b"")

  def _inspect(
    self, data: tf.Tensor, reason: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    shape, plain, reason = tf.numpy_function(
      lambda data, reason: image_io.inspect_image(data, reason, self._how),
      [data, reason],
      [tf.int32, tf.bool, tf.string],
      stateful=False,
    )
    shape = tf.ensure_shape(shape, [2])
    return shape, tf.ensure_shape(plain, []), tf.ensure_shape(reason, [])

  def _load_with_pillow(
    self, data: tf.Tensor, reason: tf.Tensor, box: tf.Tensor
  ) -> _Result:
    image, reason = tf.numpy_function(
      lambda data, reason, box: image_io.load_box(data, reason, box, self._how),
      [data, reason, box],
      [self._how.dtype, tf.string],
      stateful=False,
    )
    image = tf.ensure_shape(image, [None, None, self._how.channels])
    return image, tf.ensure_shape(reason, [])

  def _jpeg_shape(self, data: tf.Tensor) -> tf.Tensor:
    """Reads height and width; fails where only Pillow is to decode."""
    shape = tf.image.extract_jpeg_shape(data)
    count = tf.reduce_prod(tf.cast(shape[:2], tf.int64))
    known = (shape[2] == 1) | (shape[2] == 3)  # CMYK has 4
    # `image_io` decodes large images one at a time.
    known &= count <= min(image_io.LARGE_PIXELS, self._how.max_pixels)
    with tf.control_dependencies([tf.debugging.Assert(known, [shape])]):
      return tf.ensure_shape(tf.identity(shape[:2]), [2])


def _is_plain_jpeg(data: tf.Tensor) -> tf.Tensor:
  """Checks whether TensorFlow can decode the bytes without a look by Pillow.

  A plain JPEG ends with the end marker. It has no segment but APP0 before its
  tables, and so no EXIF tag and little metadata. The check raises an error for
  a very short file.
  """
  end = tf.strings.substr(data, tf.strings.length(data) - 2, 2)
  whole = tf.io.is_jpeg(data) & (end == b"\xff\xd9")

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
  """Converts uint8 [h, w, 1 or 3] to gray with Pillow's integer weights."""

  def luma() -> tf.Tensor:
    weights = tf.constant([19595, 38470, 7471])
    total = tf.reduce_sum(tf.cast(image, tf.int32) * weights, -1)
    return tf.cast((total + (1 << 15)) // (1 << 16), tf.uint8)[..., None]

  return tf.cond(tf.shape(image)[-1] == 1, lambda: image, luma)


def _map(
  dataset: tf.data.Dataset, function: Callable[[Any], Any]
) -> tf.data.Dataset:
  # Nothing here needs AutoGraph, and its conversion takes seconds.
  return dataset.map(tf.autograph.experimental.do_not_convert(function))
