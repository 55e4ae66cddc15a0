"""Reading of image files with Pillow or NumPy.

`decode` uses these functions where TensorFlow cannot decode a file, or decodes
it differently. They never raise: an unreadable file gives one black pixel and
the reason.
"""

import contextlib
import importlib
import io
import threading
import warnings
from typing import Any, NamedTuple, Self

import numpy as np
from etils import epath
from PIL import Image, ImageChops, PngImagePlugin, UnidentifiedImageError

from mae_jax.config import DataConfig
from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError

FORMATS: tuple[str, ...] = (
  "JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF",
)  # fmt: skip
NPY = b"\x93NUMPY"
# Pillow takes up to 12 bytes a pixel. Larger images are decoded one at a time,
# so that a folder of them takes no more memory than one of them.
LARGE_PIXELS = 1 << 25
_one_large_image = threading.Lock()
# Photographs with a depth map have a few MB in 200 segments, read in 800 parts.
MAX_METADATA = 1 << 24  # bytes of a header
MAX_READS = 1 << 12
_BACKGROUNDS = {"white": 255, "gray": 128, "black": 0}  # of data.background

_ORIENTATION_TAG = 0x112  # the EXIF tag
_TRANSPOSES = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
# TIFF tags.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 258, 262, 284, 339

# HEIC needs a plugin for Pillow, which registers itself.
with contextlib.suppress(ImportError):
  importlib.import_module("pillow_heif").register_heif_opener()
  FORMATS = (*FORMATS, "HEIF")

# `_check_size` replaces Pillow's limit, which would warn first.
Image.MAX_IMAGE_PIXELS = None
# Color profiles and texts of a PNG, unpacked; Pillow's bound is 1 MiB.
PngImagePlugin.MAX_TEXT_CHUNK = MAX_METADATA
# Pillow would warn of a broken tag or a short file each time it is read.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


_notes: dict[str, str] = {}  # by kind; "" for those that were printed


class _UnreadableError(Exception):
  """An image that cannot be read; the message is the whole reason."""


class Reading(NamedTuple):
  """The settings by which an image file is read.

  Attributes:
    channels: 1 or 3; other numbers only for arrays (.npy).
    exif_rotate: whether to rotate the image as its EXIF orientation tag says.
      Pillow always rotates a TIFF.
    max_pixels: images of more pixels are unreadable.
    truncated: whether to take what decodes of a truncated file.
    background: as `data.background`.
    value_range: as `data.value_range`.
  """

  channels: int
  exif_rotate: bool
  max_pixels: int = DataConfig.max_image_pixels
  truncated: bool = False
  background: str = DataConfig.background
  value_range: tuple[float, ...] = ()

  @property
  def dtype(self) -> np.dtype:
    """The dtype of pixels."""
    return np.dtype(np.float32 if self.value_range else np.uint8)

  @classmethod
  def of(cls, data: DataConfig) -> Self:
    """Returns these settings of the `data` section."""
    return cls(
      data.channels,
      data.exif_rotate,
      data.max_image_pixels,
      data.truncated_images == "decode",
      data.background,
      data.value_range,
    )


class _Bounded:
  """A file with a bound on its header; raises _UnreadableError beyond.

  Pillow appends the Exif segments of a JPEG one by one, which takes a time that
  grows with the square of their number.
  """

  bounded = True
  _calls = _bytes = 0

  def read(self, size: int | None = -1, /) -> bytes:
    data: bytes = super().read(size)  # type: ignore[misc]
    if self.bounded:
      self._calls += 1
      if size is not None and size >= 0:  # WebP and AVIF read the whole file
        self._bytes += len(data)
      if self._calls > MAX_READS or self._bytes > MAX_METADATA:
        raise _UnreadableError(
          f"its metadata has more than {MAX_METADATA >> 20} MiB or {MAX_READS} "
          "parts: remove them, for instance with exiftool -all="
        )
    return data


class _BoundedBytes(_Bounded, io.BytesIO):
  """The content of a file."""


class _BoundedFile(_Bounded, io.FileIO):
  """A file on a disk."""


def print_notes() -> None:
  """Warns once of each kind of surprise among the images read so far.

  Files are read in threads, which may not print; this function is for the
  thread that takes the images.
  """
  for kind, text in list(_notes.items()):
    if text:
      _notes[kind] = ""
      console.warn(text)


def read_bytes(path: bytes) -> tuple[bytes, bytes]:
  """Returns the bytes of a file, and "" or the reason why it cannot be read."""
  try:
    if b"://" in path:
      return epath.Path(path.decode()).read_bytes(), b""
    with open(path, "rb") as file:
      return file.read(), b""
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
    _check(data, reason)
    if data.startswith(NPY):
      shape = _parse_npy(data, how).shape[:2]
      return np.array(shape, np.int32), np.False_, b""
    image = _open_image(data, how)
    turn = _orientation(image, data, how.exif_rotate)
    width, height = image.size
    if turn in (5, 6, 7, 8):
      width, height = height, width
    plain = turn == 1 and _is_whole_jpeg(image, data)
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
    _check(data, reason)
    top, left, height, width = (int(side) for side in box)
    if data.startswith(NPY):
      array = _parse_npy(data, how)
      return _crop_array(array, top, left, height, width, how), b""
    image = _open_image(data, how)
    large = image.width * image.height > LARGE_PIXELS
    with _one_large_image if large else contextlib.nullcontext():
      turn = _orientation(image, data, how.exif_rotate)
      stored = _Stored.of(image)
      _load_pixels(image, how.truncated)
      if turn in _TRANSPOSES:
        image = image.transpose(_TRANSPOSES[turn])
      if (top, left, height, width) != (0, 0, image.height, image.width):
        image = image.crop((left, top, left + width, top + height))
      return _to_channels(image, stored, how), b""
  except Exception as error:
    return np.zeros((1, 1, how.channels), how.dtype), _reason(error)


def is_image(path: str) -> bool:
  """Checks whether a regular file is an image, by content and not by name."""
  try:
    with _BoundedFile(path, "rb") as file:
      start = file.read(12)
      named = start[8:] == b"WEBP" or start[4:8] == b"ftyp"
      if not (start.startswith(_STARTS) or named):
        return False
      if start.startswith(NPY):
        return True
      file.seek(0)
      with Image.open(file, formats=FORMATS):
        return True
  except Exception:
    return False


_STARTS = (
  b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II", b"MM", NPY,
  b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", *(b"P%d" % k for k in range(1, 7)),
)  # fmt: skip
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1")


def _check(data: bytes, reason: bytes) -> None:
  if reason:
    raise _UnreadableError(reason.decode(errors="replace"))
  if not data:
    raise _UnreadableError("it is empty")


def _open_image(data: bytes, how: Reading) -> Any:
  if how.channels not in (1, 3):
    raise _UnreadableError(
      f"it is not a .npy file, which data.channels={how.channels} needs"
    )
  if how.truncated and data.startswith(b"\xff\xd8"):
    data += b"\xff\xd9"  # makes libjpeg return the rows that it has
  file = _BoundedBytes(data)
  try:
    image = Image.open(file, formats=FORMATS)
  except UnidentifiedImageError:
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
      raise _UnreadableError(
        "it is HEIC, which needs a plugin: pip install pillow-heif, or convert "
        "it to JPEG"
      ) from None
    if data.startswith(b"version https://git-lfs"):
      raise _UnreadableError(
        "it is a Git LFS pointer, not the image: fetch images with git lfs pull"
      ) from None
    kinds = ", ".join(FORMATS)
    raise _UnreadableError(
      f"it is not {kinds} or .npy, or a variant that Pillow cannot read: it "
      f"begins with {data[:12]!r}"
    ) from None
  file.bounded = False
  _check_size(*image.size, how)
  if image.format == "TIFF":
    _check_tiff(image, how)
  if how.value_range:
    _check_wide(image)
  elif image.mode in ("I", "F") and image.format != "PPM":
    raise _UnreadableError(
      "its pixels have 32 bits and no known range: save it with 8 or 16 bits, "
      "or set data.value_range"
    )
  return image


def _check_wide(image: Any) -> None:
  raw = [str(tile.args) for tile in image.tile]
  if image.mode not in _WIDE_MODES and any(";16" in each for each in raw):
    raise _UnreadableError(
      "its colors have 16 bits, of which Pillow reads 8: save it as .npy, or "
      "set data.value_range=() to read 8 bits"
    )


def _check_tiff(image: Any, how: Reading) -> None:
  """Refuses or mends what Pillow reads wrongly, and notes several pages."""
  if image.tag_v2.next and "pages" not in _notes:
    with contextlib.suppress(Exception):  # a later page is broken
      _notes["pages"] = (
        f"a TIFF has {image.n_frames} pages: of such files the first page is "
        "read, which is said once"
      )
  tags = image.tag_v2
  if 2 in tags.get(_SAMPLE_FORMAT, ()) and not how.value_range:
    raise _UnreadableError(
      "its pixels are signed integers of no known range: save it as unsigned, "
      "or set data.value_range"
    )
  bits = tags.get(_BITS_PER_SAMPLE, (1,))
  if tags.get(_PLANAR) == 2 and set(bits) == {16}:
    # Pillow would take the two bytes of a value for two pixels.
    order = "L" if tags.prefix == b"II" else "B"
    image.tile = [
      tile._replace(args=(f"{tile.args[0]};16{order}", *tile.args[1:]))
      if tile.codec_name == "raw"
      else tile
      for tile in image.tile
    ]


def _check_size(width: int, height: int, how: Reading) -> None:
  if width * height > how.max_pixels:
    raise _UnreadableError(
      f"{width} x {height} is more than data.max_image_pixels={how.max_pixels}:"
      " cut it into tiles, or set that higher if you have the memory, 12 bytes "
      "a pixel"
    )


def _load_pixels(image: Any, truncated: bool) -> None:
  try:
    image.load()
  except Exception:
    if not truncated or image._im is None:
      raise
    image.tile = []  # the rows that were decoded are all there is
    image.load()


def _orientation(image: Any, data: bytes, exif_rotate: bool) -> int:
  # Pillow rotates a TIFF itself. It would decode a whole PNG to find out that
  # there is no tag.
  if not exif_rotate or image.format == "TIFF":
    return 1
  if image.format == "PNG" and b"eXIf" not in data and b"xmp" not in data:
    return 1
  try:
    turn = image.getexif().get(_ORIENTATION_TAG, 1)
  except Exception:  # a broken tag rotates nothing
    return 1
  return turn if turn in _TRANSPOSES else 1


def _is_whole_jpeg(image: Any, data: bytes) -> bool:
  if image.format not in ("JPEG", "MPO") or image.mode not in ("L", "RGB"):
    return False
  # TensorFlow would decode a truncated file without an error.
  return data.rfind(b"\xff\xd9", image.fp.tell()) > 0


class _Stored(NamedTuple):
  """The tags by which gray is read, which `load` drops."""

  bits: int = 16
  inverted: bool = False  # 0 is white
  signed: bool = False
  most: int = 65535  # of a PGM

  @classmethod
  def of(cls, image: Any) -> Self:
    tags = getattr(image, "tag_v2", None) or {}
    bits = int(tags.get(_BITS_PER_SAMPLE, (16,))[0])
    most = 65535
    if image.format == "PPM" and image.mode == "I":
      most = next((x.args[-1] for x in image.tile if x[0] != "raw"), most)
    signed = 2 in tags.get(_SAMPLE_FORMAT, ())
    return cls(bits, tags.get(_PHOTOMETRIC) == 0, signed, most)


_WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def _stored_values(image: Any, stored: _Stored) -> np.ndarray | None:
  """Returns the values [H, W] of gray of more than 8 bits, as they are stored.

  None for other images.
  """
  values = np.asarray(image)
  if image.mode == "L" and stored.signed:
    return values.view(np.int8)
  if image.mode not in _WIDE_MODES:
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
    if data.startswith(NPY):
      array = _parse_npy(data, how)
      values = None if array.dtype == np.uint8 else array
    else:
      image = _open_image(data, how)
      stored = _Stored.of(image)
      if image.mode in _WIDE_MODES or stored.signed:
        image.load()
        values = _stored_values(image, stored)
  if values is None:
    return np.full(count, np.nan)
  places = np.linspace(0, values.size - 1, count).astype(int)
  return values.reshape(-1)[places].astype(np.float64)


def _note_levels(values: np.ndarray, shift: int) -> None:
  if "levels" in _notes:
    return
  some = values.ravel()[:: max(values.size >> 16, 1)]
  before, after = (len(np.unique(x)) for x in (some, some >> shift))
  if 2 * after < before:
    _notes["levels"] = (
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
    image = _open_image(data, Reading(3, True))
    if not image.has_transparency_data:
      return False
    image.load()
    return bool(_alpha(image).getextrema()[0] < 255)
  except Exception:  # `load_box` reports it
    return False


def _to_channels(image: Any, stored: _Stored, how: Reading) -> np.ndarray:
  values = _stored_values(image, stored)
  if values is not None and how.value_range:
    gray = scale(values, how.value_range)[..., None]
    return np.repeat(gray, how.channels, axis=-1)
  if values is not None and image.mode != "F":
    _note_levels(values, stored.bits - 8 if image.mode != "I" else 8)
  alpha = None if how.background == "drop" else _alpha(image)
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
  if alpha is not None:
    level = _BACKGROUNDS[how.background]
    ink = level if plain == "L" else (level,) * 3
    image.paste(ink, mask=ImageChops.invert(alpha))
  wanted = "L" if how.channels == 1 else "RGB"
  if plain != wanted:
    image = image.convert(wanted)
  pixels = np.asarray(image).reshape(image.height, image.width, how.channels)
  return scale(pixels, how.value_range) if how.value_range else pixels


def _parse_npy(data: bytes, how: Reading) -> np.ndarray:
  """Parses a .npy file to an array [H, W, C] of known range."""
  file = io.BytesIO(data)
  version = np.lib.format.read_magic(file)
  if version == (1, 0):
    header = np.lib.format.read_array_header_1_0(file)
  else:
    header = np.lib.format.read_array_header_2_0(file)
  shape, fortran, dtype = header
  wide = how.value_range and dtype.kind in "uif"
  if not wide and (dtype.kind != "u" or dtype.itemsize > 2):
    raise _UnreadableError(
      f"it is an array of {dtype}: save it as uint8, or as uint16, whose high "
      "byte is read, or set data.value_range"
    )
  if len(shape) not in (2, 3) or 0 in shape:
    raise _UnreadableError(
      f"it is an array of shape {list(shape)}: save it as [H, W, C]"
    )
  _check_size(shape[1], shape[0], how)
  wanted = int(np.prod(shape, dtype=object)) * dtype.itemsize
  if wanted > len(data) - file.tell():
    raise _UnreadableError(
      f"it is truncated: {len(data) - file.tell()} of {wanted} bytes"
    )
  array = np.frombuffer(data, dtype, wanted // dtype.itemsize, file.tell())
  array = array.reshape(shape, order="F" if fortran else "C")
  array = array[..., None] if array.ndim == 2 else array
  found, channels = array.shape[-1], how.channels
  if found != channels and {found, channels} != {1, 3}:
    raise _UnreadableError(
      f"it is an array with {found} channels, but data.channels={channels}"
    )
  return array


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
  stored = _Stored.of(image)
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
    how.exif_rotate and (turn := image.getexif().get(_ORIENTATION_TAG, 1)) != 1
  ):
    image = image.transpose(_TRANSPOSES[turn]) if turn in _TRANSPOSES else image
  if image.mode in ("La", "RGBa"):  # Pillow converts these to one mode alone
    image = image.convert(image.mode.upper())
  return _to_channels(image.copy(), stored, how)


def _reason(error: Exception) -> bytes:
  text = " ".join(str(error).split())
  if isinstance(error, OSError) and error.strerror:
    text = error.strerror
  elif not isinstance(error, _UnreadableError):
    text = f"{type(error).__name__}: {text}"
  return text[:300].encode(errors="backslashreplace")
