"""Headers of image files: what Pillow and NumPy read before the pixels.

A header says whether a file is an image, how large it is, and how its pixels
are stored. Files that would cost too much, or be read wrongly, are refused
here. `image_io` decodes the pixels.
"""

import contextlib
import importlib
import io
import warnings
from typing import Any, NamedTuple, Self

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from mae_jax.config import DataConfig
from mae_jax.utils import console

FORMATS: tuple[str, ...] = (
  "JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF",
)  # fmt: skip
NPY = b"\x93NUMPY"
# Photographs with a depth map have a few MB in 200 segments, read in 800 parts.
MAX_METADATA = 1 << 24  # bytes of a header
MAX_READS = 1 << 12

ORIENTATION_TAG = 0x112  # the EXIF tag
TRANSPOSES = {
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

WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_STARTS = (
  b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II", b"MM", NPY,
  b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", *(b"P%d" % k for k in range(1, 7)),
)  # fmt: skip
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1")

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

# Surprises among the images read so far, by kind; "" for those printed.
notes: dict[str, str] = {}


class UnreadableError(Exception):
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
    alpha: whether to append the alpha channel of files of 8 bits that have one.
  """

  channels: int
  exif_rotate: bool
  max_pixels: int = DataConfig.max_image_pixels
  truncated: bool = False
  background: str = DataConfig.background
  value_range: tuple[float, ...] = ()
  alpha: bool = False

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
  """A file with a bound on its header; raises UnreadableError beyond.

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
        raise UnreadableError(
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
  for kind, text in list(notes.items()):
    if text:
      notes[kind] = ""
      console.warn(text)


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


def check_content(data: bytes, reason: bytes) -> None:
  """Raises UnreadableError for a reason, or if there are no bytes."""
  if reason:
    raise UnreadableError(reason.decode(errors="replace"))
  if not data:
    raise UnreadableError("it is empty")


def open_image(data: bytes, how: Reading) -> Any:
  """Opens an image with Pillow, whose pixels are not yet decoded.

  Raises:
    UnreadableError: if it is no image, or would be read wrongly.
  """
  if how.channels not in (1, 3):
    raise UnreadableError(
      f"it is not a .npy file, which data.channels={how.channels} needs"
    )
  if how.truncated and data.startswith(b"\xff\xd8"):
    data += b"\xff\xd9"  # makes libjpeg return the rows that it has
  file = _BoundedBytes(data)
  try:
    image = Image.open(file, formats=FORMATS)
  except UnidentifiedImageError:
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
      raise UnreadableError(
        "it is HEIC, which needs a plugin: pip install pillow-heif, or convert "
        "it to JPEG"
      ) from None
    if data.startswith(b"version https://git-lfs"):
      raise UnreadableError(
        "it is a Git LFS pointer, not the image: fetch images with git lfs pull"
      ) from None
    kinds = ", ".join(FORMATS)
    raise UnreadableError(
      f"it is not {kinds} or .npy, or a variant that Pillow cannot read: it "
      f"begins with {data[:12]!r}"
    ) from None
  file.bounded = False
  _check_size(*image.size, how)
  if image.format == "TIFF":
    _check_tiff(image, how)
  _check_colors(_color_bits(image, data), how)
  wide = image.mode in ("I", "F") and image.format != "PPM"
  if wide and not how.value_range:
    raise UnreadableError(
      "its pixels have 32 bits and no known range: save it with 8 or 16 bits, "
      "or set data.value_range"
    )
  return image


def _color_bits(image: Any, data: bytes) -> int:
  """Returns the bits of each color in the file, of which Pillow reads 8.

  Returns 8 for gray of more bits, which Pillow reads whole.
  """
  if image.mode in WIDE_MODES:
    return 8
  raw = [str(tile.args) for tile in image.tile]
  if any(";16" in each for each in raw):
    return 16
  if image.format == "PPM" and image.tile[0].codec_name == "ppm":
    most: int = image.tile[0].args[-1]
    return max(most.bit_length(), 8)
  if image.format == "JPEG2000":  # Ssiz of the codestream's first color
    return (data[data.index(b"\xff\x4f\xff\x51") + 42] & 127) + 1
  if image.format == "AVIF" and (start := data.find(b"av1C")) > -1:
    high_bitdepth, twelve_bit = data[start + 6] & 64, data[start + 6] & 32
    return 8 + 2 * bool(high_bitdepth) + 2 * bool(twelve_bit)
  return 8


def _check_colors(bits: int, how: Reading) -> None:
  """Refuses colors of more than 8 bits that are all wanted, or notes them."""
  if bits > 8 and how.value_range:
    raise UnreadableError(
      f"its colors have {bits} bits, of which Pillow reads 8: save it as .npy, "
      "or set data.value_range=() to read 8 bits"
    )
  if bits > 8:
    notes.setdefault(
      "colors",
      f"the colors of an image have {bits} bits, of which 8 are read: save "
      "such images as .npy and set --config.data.value_range=LOW,HIGH to keep "
      "all (said once)",
    )


def _check_tiff(image: Any, how: Reading) -> None:
  """Refuses or fixes what Pillow reads wrongly, and notes several pages."""
  if image.tag_v2.next and "pages" not in notes:
    with contextlib.suppress(Exception):  # a later page is broken
      notes["pages"] = (
        f"a TIFF has {image.n_frames} pages: of such files the first page is "
        "read, which is said once"
      )
  tags = image.tag_v2
  if 2 in tags.get(_SAMPLE_FORMAT, ()) and not how.value_range:
    raise UnreadableError(
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
    raise UnreadableError(
      f"{width} x {height} is more than data.max_image_pixels={how.max_pixels}:"
      " cut it into tiles, or set that higher if you have the memory, 12 bytes "
      "a pixel"
    )


def find_orientation(image: Any, data: bytes, exif_rotate: bool) -> int:
  """Returns the EXIF orientation by which to turn an image, 1 for none."""
  # Pillow rotates a TIFF itself. It would decode a whole PNG to find out that
  # there is no tag.
  if not exif_rotate or image.format == "TIFF":
    return 1
  if image.format == "PNG" and b"eXIf" not in data and b"xmp" not in data:
    return 1
  try:
    turn = image.getexif().get(ORIENTATION_TAG, 1)
  except Exception:  # a broken tag rotates nothing
    return 1
  return turn if turn in TRANSPOSES else 1


def is_whole_jpeg(image: Any, data: bytes) -> bool:
  """Checks for a JPEG of gray or RGB that has its end."""
  if image.format not in ("JPEG", "MPO") or image.mode not in ("L", "RGB"):
    return False
  # TensorFlow would decode a truncated file without an error.
  return data.rfind(b"\xff\xd9", image.fp.tell()) > 0


class Stored(NamedTuple):
  """The tags by which gray is read, which `load` drops."""

  bits: int = 16
  inverted: bool = False  # 0 is white
  signed: bool = False
  most: int = 65535  # of a PGM

  @classmethod
  def of(cls, image: Any) -> Self:
    """Returns the tags of an image that is not loaded yet."""
    tags = getattr(image, "tag_v2", None) or {}
    bits = int(tags.get(_BITS_PER_SAMPLE, (16,))[0])
    most = 65535
    if image.format == "PPM" and image.mode == "I":
      most = next((x.args[-1] for x in image.tile if x[0] != "raw"), most)
    signed = 2 in tags.get(_SAMPLE_FORMAT, ())
    return cls(bits, tags.get(_PHOTOMETRIC) == 0, signed, most)


def parse_npy(data: bytes, how: Reading) -> np.ndarray:
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
    raise UnreadableError(
      f"it is an array of {dtype}: save it as uint8, or as uint16, whose high "
      "byte is read, or set data.value_range"
    )
  if len(shape) not in (2, 3) or 0 in shape:
    raise UnreadableError(
      f"it is an array of shape {list(shape)}: save it as [H, W, C]"
    )
  _check_size(shape[1], shape[0], how)
  wanted = int(np.prod(shape, dtype=object)) * dtype.itemsize
  if wanted > len(data) - file.tell():
    raise UnreadableError(
      f"it is truncated: {len(data) - file.tell()} of {wanted} bytes"
    )
  array = np.frombuffer(data, dtype, wanted // dtype.itemsize, file.tell())
  array = array.reshape(shape, order="F" if fortran else "C")
  array = array[..., None] if array.ndim == 2 else array
  found, channels = array.shape[-1], how.channels
  if found != channels and {found, channels} != {1, 3}:
    raise UnreadableError(
      f"it is an array with {found} channels, but data.channels={channels}"
    )
  return array
