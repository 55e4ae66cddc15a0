"""Reading of image files with Pillow or NumPy.

`decode` uses these functions where TensorFlow cannot decode a file, or decodes
it differently. They never raise: an unreadable file gives one black pixel and
the reason. `image_headers` opens and checks the files.
"""

import contextlib
import threading
from typing import Any

import numpy as np
from etils import epath
from PIL import Image, ImageChops

from mae_jax.data import image_headers
from mae_jax.data.image_headers import Reading, Stored
from mae_jax.utils.errors import ConfigError

# Pillow takes up to 12 bytes a pixel. Larger images are decoded one at a time,
# so that a folder of them takes no more memory than one of them.
LARGE_PIXELS = 1 << 25
_one_large_image = threading.Lock()
_BACKGROUNDS = {"white": 255, "gray": 128, "black": 0}  # of data.background


def read_bytes(
  path: bytes, offset: int = 0, length: int = -1
) -> tuple[bytes, bytes]:
  """Returns the bytes of a file, and "" or the reason why it cannot be read.

  Args:
    path: the file.
    offset: the first byte.
    length: number of bytes; -1 for all.
  """
  try:
    if b"://" in path:
      return epath.Path(path.decode()).read_bytes(), b""
    with open(path, "rb", buffering=0) as file:
      file.seek(offset)
      data = file.read(length)
    if len(data) < length:
      raise image_headers.UnreadableError("the file ends before its last byte")
    return data, b""
  except Exception as error:
    return b"", _reason(error)


def inspect_image(
  data: bytes, reason: bytes, how: Reading
) -> tuple[np.ndarray, np.bool_, bytes]:
  """Reads the header of an image file, without decoding the pixels.

  The arguments are those of `load_box`.

  Returns:
    Height and width, int32 [2], of the whole image in `load_box`; whether
    TensorFlow decodes the file to the same pixels; "" or the reason why the
    file cannot be read.
  """
  try:
    image_headers.check_content(data, reason)
    if data.startswith(image_headers.NPY):
      shape = image_headers.parse_npy(data, how).shape[:2]
      return np.array(shape, np.int32), np.False_, b""
    image = image_headers.open_image(data, how)
    turn = image_headers.find_orientation(image, data, how.exif_rotate)
    width, height = image.size
    if turn in (5, 6, 7, 8):
      width, height = height, width
    plain = turn == 1 and image_headers.is_whole_jpeg(image, data)
    return np.array([height, width], np.int32), np.bool_(plain), b""
  except Exception as error:
    return np.ones(2, np.int32), np.False_, _reason(error)


def load_box(
  data: bytes, reason: bytes, box: np.ndarray, how: Reading
) -> tuple[np.ndarray, bytes]:
  """Decodes one box of an image file.

  Args:
    data: the file's bytes.
    reason: why the file cannot be read, or "".
    box: integers [4]: top, left, height, width.
    how: the settings.

  Returns:
    Pixels [height, width, channels], and "" or the reason why the file cannot
    be read. They are uint8; with `value_range`, float32 from 0 to 255, where
    255 stands for its upper end.
  """
  try:
    image_headers.check_content(data, reason)
    top, left, height, width = (int(side) for side in box)
    if data.startswith(image_headers.NPY):
      array = image_headers.parse_npy(data, how)
      return _crop_array(array, top, left, height, width, how), b""
    image = image_headers.open_image(data, how)
    large = image.width * image.height > LARGE_PIXELS
    with _one_large_image if large else contextlib.nullcontext():
      turn = image_headers.find_orientation(image, data, how.exif_rotate)
      stored = Stored.of(image)
      _load_pixels(image, how.truncated)
      if turn in image_headers.TRANSPOSES:
        image = image.transpose(image_headers.TRANSPOSES[turn])
      if (top, left, height, width) != (0, 0, image.height, image.width):
        image = image.crop((left, top, left + width, top + height))
      return _to_channels(image, stored, how), b""
  except Exception as error:
    return np.zeros((1, 1, how.channels), how.dtype), _reason(error)


def _load_pixels(image: Any, truncated: bool) -> None:
  try:
    image.load()
  except Exception:
    if not truncated or image._im is None:
      raise
    image.tile = []  # the rows that were decoded are all there is
    image.load()


def _stored_values(image: Any, stored: Stored) -> np.ndarray | None:
  """Returns the values [H, W] of gray of more than 8 bits, as they are stored.

  None for other images.
  """
  values = np.asarray(image)
  if image.mode == "L" and stored.signed:
    return values.view(np.int8)
  if image.mode not in image_headers.WIDE_MODES:
    return None
  if image.mode == "I" and stored.most != 65535:  # Pillow scaled it
    values = np.rint(values * (stored.most / 65535)).astype(np.int32)
  if stored.inverted and image.mode.startswith("I;16"):
    values = (1 << stored.bits) - 1 - values.astype(np.int32)
  return values


def scale(values: np.ndarray, value_range: tuple[float, ...]) -> np.ndarray:
  """Maps `value_range` to 0 to 255, clipped, float32.

  Raises:
    ConfigError: if a value is not finite.
  """
  low, high = value_range
  # In place: an image may be large.
  scaled: np.ndarray = values.astype(np.float32)
  if values.dtype.kind == "f" and not np.isfinite(scaled).all():
    raise ConfigError("its values are not all finite: replace NaN and infinity")
  scaled -= np.float32(low)
  scaled *= np.float32(255 / (high - low))
  return scaled.clip(0, 255, out=scaled)


def to_bytes(pixels: np.ndarray) -> np.ndarray:
  """Rounds pixels from 0 to 255 to uint8, for pictures."""
  if pixels.dtype == np.uint8:
    return pixels
  return np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)


def sample_values(data: bytes, channels: int, count: int = 256) -> np.ndarray:
  """Returns values of an image file of more than 8 bits, as they are stored.

  Args:
    data: the file's bytes.
    channels: as in `Reading`.
    count: number of values, evenly spaced over the pixels.

  Returns:
    float64 [count]; NaN for files of 8 bits and unreadable ones.
  """
  values: np.ndarray | None = None
  how = Reading(channels, True, value_range=(0.0, 1.0))
  with contextlib.suppress(Exception):
    if data.startswith(image_headers.NPY):
      array = image_headers.parse_npy(data, how)
      values = None if array.dtype == np.uint8 else array
    else:
      image = image_headers.open_image(data, how)
      stored = Stored.of(image)
      if image.mode in image_headers.WIDE_MODES or stored.signed:
        image.load()
        values = _stored_values(image, stored)
  if values is None:
    return np.full(count, np.nan)
  places = np.linspace(0, values.size - 1, count).astype(int)
  return values.reshape(-1)[places].astype(np.float64)


def _note_levels(values: np.ndarray, shift: int) -> None:
  if "levels" in image_headers.notes:
    return
  some = values.ravel()[:: max(values.size >> 16, 1)]
  before, after = (len(np.unique(x)) for x in (some, some >> shift))
  if 2 * after < before:
    image_headers.notes["levels"] = (
      f"8 bits keep {after} of the {before} gray levels of an image: set "
      "--config.data.value_range=LOW,HIGH to keep all; inspect finds the two "
      "(said once)"
    )


def _alpha(image: Any) -> Any:
  """Returns the alpha channel of a loaded image, None if it has none."""
  if not image.has_transparency_data:
    return None
  key = image.info.get("transparency")
  if image.mode == "I" or image.mode.startswith("I;16"):
    opaque = np.asarray(image) != key
    return Image.fromarray(opaque.astype(np.uint8) * 255)
  if isinstance(key, tuple) and max(key) > 255:  # of 16 bits a channel
    image.info["transparency"] = tuple(value >> 8 for value in key)
  color = image if "A" in image.getbands() else image.convert("RGBA")
  return color.getchannel("A")


def is_transparent(data: bytes) -> bool:
  """Checks whether an image file has pixels that are not opaque."""
  try:
    image = image_headers.open_image(data, Reading(3, True))
    if not image.has_transparency_data:
      return False
    image.load()
    return bool(_alpha(image).getextrema()[0] < 255)
  except Exception:  # `load_box` reports it
    return False


def _to_channels(image: Any, stored: Stored, how: Reading) -> np.ndarray:
  values = _stored_values(image, stored)
  if values is not None and how.value_range:
    gray = scale(values, how.value_range)[..., None]
    return np.repeat(gray, how.channels, axis=-1)
  if values is not None and image.mode != "F":
    _note_levels(values, stored.bits - 8 if image.mode != "I" else 8)
  composited = how.background != "drop"
  alpha = _alpha(image) if composited or how.alpha else None
  # Pillow would use this entry when it converts.
  image.info.pop("transparency", None)
  if image.mode == "I":  # a PGM of 16 bits, which Pillow scales to 0..65535
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  if image.mode.startswith("I;16"):  # Pillow's own conversion clips to 255
    gray = (np.asarray(image) >> (stored.bits - 8)).astype(np.uint8)
    image = Image.fromarray(gray ^ 255 if stored.inverted else gray)
  plain = "L" if image.mode in ("1", "L", "LA") else "RGB"
  if image.mode != plain:  # otherwise Pillow would copy it
    image = image.convert(plain)
  if composited and alpha is not None:
    level = _BACKGROUNDS[how.background]
    ink = level if plain == "L" else (level,) * 3
    image.paste(ink, mask=ImageChops.invert(alpha))
  wanted = "L" if how.channels == 1 else "RGB"
  if plain != wanted:
    image = image.convert(wanted)
  pixels = np.asarray(image).reshape(image.height, image.width, how.channels)
  if how.alpha and alpha is not None:
    pixels = np.dstack([pixels, alpha])
  return scale(pixels, how.value_range) if how.value_range else pixels


def _crop_array(
  array: np.ndarray, top: int, left: int, height: int, width: int, how: Reading
) -> np.ndarray:
  part = array[top : top + height, left : left + width]
  if how.value_range:
    return with_channels(scale(part, how.value_range), how.channels)
  if part.dtype.itemsize == 2:
    _note_levels(part, 8)
    part = part >> 8
  return with_channels(np.ascontiguousarray(part, np.uint8), how.channels)


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
  """Turns gray [H, W, C] into color, or color into gray, if wanted."""
  if pixels.shape[-1] == channels:
    return pixels
  if channels == 3:
    return np.repeat(pixels, 3, axis=-1)
  if pixels.dtype != np.uint8:
    luma = np.array([19595, 38470, 7471], np.float32) / (1 << 16)
    return (pixels @ luma)[..., None]
  color = Image.fromarray(np.ascontiguousarray(pixels))
  return np.asarray(color.convert("L"))[..., None]


def to_pixels(image: Any, how: Reading) -> np.ndarray:
  """Converts a Pillow image to [H, W, C], as `load_box` does files.

  Raises:
    ConfigError: if it cannot be read, or its mode has no known range.
  """
  stored = Stored.of(image)
  try:
    image.load()  # first: a TIFF is rotated here, and then has no tag
  except Exception as error:
    raise ConfigError(
      f"a Pillow image that cannot be read ({_reason(error).decode()}): open "
      "it again, or leave it out"
    ) from error
  if 0 in image.size:
    raise ConfigError(
      f"a Pillow image of {image.width} x {image.height}, without pixels: "
      "leave it out"
    )
  no_range = image.mode in ("I", "F") and not how.value_range
  if no_range or how.channels not in (1, 3):
    raise ConfigError(
      f"a Pillow image of mode {image.mode}, which cannot be {how.channels} "
      "channels of 8 bits: give an array of uint8 [H, W, C]"
    )
  if (
    how.exif_rotate
    and (turn := image.getexif().get(image_headers.ORIENTATION_TAG, 1)) != 1
  ):
    image = (
      image.transpose(image_headers.TRANSPOSES[turn])
      if turn in image_headers.TRANSPOSES
      else image
    )
  if image.mode in ("La", "RGBa"):  # Pillow converts these to one mode alone
    image = image.convert(image.mode.upper())
  return _to_channels(image.copy(), stored, how)


def _reason(error: Exception) -> bytes:
  text = " ".join(str(error).split())
  if isinstance(error, OSError) and error.strerror:
    text = error.strerror
  elif not isinstance(error, image_headers.UnreadableError):
    text = f"{type(error).__name__}: {text}"
  return text[:300].encode(errors="backslashreplace")
