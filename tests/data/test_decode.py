"""Tests of decoding against Pillow, and of unreadable files."""

from __future__ import annotations

import base64
import functools
import io
import re
import zlib

import numpy as np
import pytest
import tensorflow as tf
import tifffile
from PIL import Image, ImageOps, PngImagePlugin

from mae_jax.data import decode, image_files, image_headers, image_io
from mae_jax.data.image_headers import Reading
from tests.data.conftest import encode


@pytest.fixture(autouse=True)
def no_notes(monkeypatch):
  monkeypatch.setattr(image_headers, "notes", {})


@functools.cache
def _decoder(how):
  return tf.function(
    lambda data: decode.decode({"image": data}, how),
    autograph=False,
    input_signature=[tf.TensorSpec([], tf.string)],
  )


def read(data, channels=3, exif_rotate=True, **how):
  """Decodes a file; returns the image, and the reason or "".

  TensorFlow's graph and the commands, which use Pillow alone, must agree.
  """
  how = Reading(channels, exif_rotate, **how)
  image, reason = _decoder(how)(tf.constant(data))
  image, reason = image.numpy(), reason.numpy().decode()
  try:
    alone, why = image_files.decode(data, b"", how), ""
  except image_headers.UnreadableError as error:
    alone, why = image, str(error)
  assert reason == why
  np.testing.assert_array_equal(image, alone)
  return image, reason


def wide(data, value_range, channels=1):
  """Decodes a file with a value range, to values between 0 and 1."""
  image, reason = read(data, channels, value_range=value_range)
  assert reason == ""
  assert image.dtype == np.float32
  return image / 255


def decoded(data, channels=3, exif_rotate=True, **how):
  image, reason = read(data, channels, exif_rotate, **how)
  assert reason == ""
  assert image.dtype == np.uint8
  return image


def by_pillow(data, channels):
  image = Image.open(io.BytesIO(data)).convert("RGB")
  image = image.convert("L" if channels == 1 else "RGB")
  return np.asarray(image).reshape(image.height, image.width, channels)


@pytest.fixture(scope="module")
def photo(photos):
  return Image.fromarray(photos[0]).resize((41, 30))


MODES = {
  "jpeg": ("L", "RGB", "CMYK"),
  "png": ("1", "L", "LA", "P", "RGB", "RGBA"),
  "webp": ("RGB", "RGBA"),
  "bmp": ("1", "L", "P", "RGB", "RGBA"),
  "gif": ("1", "L", "P", "RGB", "RGBA"),
  "tiff": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"),
  "ppm": ("1", "L", "RGB"),
  "jpeg2000": ("L", "RGB", "RGBA"),
  "avif": ("RGB", "RGBA"),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
  ("form", "mode"), [(form, mode) for form in MODES for mode in MODES[form]]
)
def test_pixels_are_pillows(photo, form, mode, channels):
  """Bit for bit, also for JPEG: both use libjpeg-turbo's accurate decoder."""
  color = photo
  if "A" in mode and mode != "LAB":
    color = color.copy()
    color.putalpha(Image.linear_gradient("L").resize(photo.size))
  image = Image.new("LAB", photo.size, (90, 140, 60)) if mode == "LAB" else None
  data = encode(image or color.convert(mode), format=form)
  np.testing.assert_array_equal(
    decoded(data, channels, background="drop"), by_pillow(data, channels)
  )


def composited(data, channels, level):
  """Composites by the formula, in float."""
  image = Image.open(io.BytesIO(data)).convert("RGBA")
  alpha = np.asarray(image, float)[..., 3:] / 255
  color = by_pillow(data, channels)
  return color * alpha + level * (1 - alpha)


BACKGROUNDS = {"white": 255, "gray": 128, "black": 0}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize(
  ("form", "mode"),
  [(form, mode) for form in MODES for mode in MODES[form] if mode[-1] == "A"],
)
def test_transparent_pixels_show_the_background(
  photo, form, mode, background, channels
):
  color = photo.copy()
  color.putalpha(Image.linear_gradient("L").resize(photo.size))
  data = encode(color.convert(mode), format=form, lossless=True)
  found = decoded(data, channels, background=background).astype(float)
  wanted = composited(data, channels, BACKGROUNDS[background])
  # Pixels are composited in color, and then become gray.
  assert np.abs(found - wanted).max() <= (0.51 if channels == 3 else 1.3)
  image = Image.open(io.BytesIO(data))
  alpha = np.asarray(image.convert("RGBA"))[..., 3]
  assert image_io.is_transparent(data) == (alpha.min() < 255)
  how = Reading(channels, True, background=background)
  np.testing.assert_array_equal(image_io.to_pixels(image, how), found)


def keyed(form, mode, dtype=np.uint8):
  """Makes a file with one transparent color, in four pixels of six."""
  dark, key = 10, 200 if dtype == np.uint8 else 51300
  array = np.array([[dark, key, key], [key, key, dark]], dtype)
  if mode == "P":
    image = Image.fromarray(array % 2 + (array > 100))
    image.putpalette([10, 10, 10, 200, 200, 200])
    return encode(image, format=form, transparency=1)
  image = Image.fromarray(array)
  image = image.convert(mode) if mode == "RGB" else image
  color = (key,) * 3 if mode == "RGB" else key
  return encode(image, format=form, transparency=color)


@pytest.mark.parametrize(
  ("form", "mode", "dtype"),
  [
    ("png", "P", np.uint8),
    ("gif", "P", np.uint8),
    ("png", "L", np.uint8),
    ("png", "RGB", np.uint8),
    ("png", "I;16", np.uint16),
  ],
)
def test_transparent_colors_and_palettes(form, mode, dtype):
  data = keyed(form, mode, dtype)
  assert image_io.is_transparent(data)
  dark = 10 if dtype == np.uint8 else 0
  for background, level in BACKGROUNDS.items():
    expected = np.where([[0, 1, 1], [1, 1, 0]], level, dark)
    found = decoded(data, 1, background=background)[..., 0]
    np.testing.assert_array_equal(found, expected)
  old = decoded(data, 1, background="drop")[..., 0]
  np.testing.assert_array_equal(old == dark, [[1, 0, 0], [0, 0, 1]])


def test_opaque_files_are_not_transparent(photo):
  for data in (
    encode(photo, format="jpeg"),
    encode(photo, format="png"),
    encode(photo.convert("RGBA"), format="png"),
    npy(np.zeros((3, 3), np.uint8)),
    b"no image",
  ):
    assert not image_io.is_transparent(data)


@pytest.mark.parametrize(
  "options",
  [
    {"progressive": True},
    {"subsampling": 0},
    {"subsampling": 1},
    {"quality": 15},
    {"exif": b"Exif\0\0broken"},
    {"icc_profile": b"x" * 100_000},
    {"comment": "c" * 60_000},
  ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_kinds_of_jpeg_are_pillows(photos, options, channels):
  data = encode(photos[1], format="jpeg", **options)
  np.testing.assert_array_equal(
    decoded(data, channels), by_pillow(data, channels)
  )


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_the_high_byte_of_16_bits_is_read(photos, form):
  gray = photos[0][..., 0].astype(np.uint16) * 200 + 77
  data = encode(gray, format=form)
  for channels in (1, 3):
    image = decoded(data, channels)
    expected = np.repeat((gray >> 8)[..., None], channels, -1)
    np.testing.assert_array_equal(image, expected)


def tiff(image, **options):
  buffer = io.BytesIO()
  tifffile.imwrite(buffer, image, **options)
  return buffer.getvalue()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planes", [3, 4])
def test_16_bit_planes_of_a_tiff(photos, order, compression, planes):
  color = photos[0][:20, :30].astype(np.uint16) * 256 + 99
  color = np.concatenate([color, np.full((20, 30, 1), 65535, np.uint16)], -1)
  data = tiff(
    np.moveaxis(color[..., :planes], -1, 0).copy(),
    photometric="rgb",
    planarconfig="separate",
    byteorder=order,
    compression=compression,
    extrasamples=["unassalpha"] * (planes - 3),
  )
  np.testing.assert_array_equal(decoded(data), photos[0][:20, :30])


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("bits", [8, 16])
def test_zero_may_be_white_in_a_tiff(photos, bits, compression):
  gray = photos[0][:20, :30, 0].astype(f"u{bits // 8}") << (bits - 8)
  data = tiff(gray, photometric="miniswhite", compression=compression)
  expected = 255 - photos[0][:20, :30, :1]
  np.testing.assert_array_equal(decoded(data, 1), expected)
  image = image_io.to_pixels(Image.open(io.BytesIO(data)), Reading(1, True))
  np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("kind", ["i1", "i2"])
def test_signed_pixels_are_refused(kind):
  data = tiff(np.arange(-6, 6, dtype=kind).reshape(3, 4))
  _, reason = read(data)
  assert "signed integers of no known range: save it as unsigned" in reason


def test_several_pages_are_reported_once(monkeypatch, capsys):
  monkeypatch.setattr(image_headers, "notes", {})
  pages = np.arange(3 * 4 * 5, dtype=np.uint16).reshape(3, 4, 5) * 1000
  data = tiff(pages, photometric="miniswhite")
  for _ in range(2):
    expected = 255 - (pages[0] >> 8)
    np.testing.assert_array_equal(decoded(data, 1)[..., 0], expected)
    image_headers.print_notes()
  said = capsys.readouterr().err
  assert said.count("a TIFF has 3 pages: of such files the first page") == 1
  # A broken second page is no reason to refuse the first.
  monkeypatch.setattr(image_headers, "notes", {})
  decoded(data[: len(data) - 2 * 4 * 5 * 2 - 8], 1)


def npy(array, **options):
  buffer = io.BytesIO()
  np.save(buffer, array, **options)
  return buffer.getvalue()


X_RAY = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # 12 bits


def pgm(array, most):
  height, width = array.shape
  head = b"P5 %d %d %d\n" % (width, height, most)
  return head + array.astype(">u2").tobytes()


@pytest.mark.parametrize(
  "data",
  [
    encode(X_RAY, format="png"),
    tiff(X_RAY),
    tiff(X_RAY, byteorder=">", compression="zlib"),
    tiff(4095 - X_RAY + 61440, photometric="miniswhite"),
    tiff(X_RAY.astype(np.int16)),
    tiff(X_RAY.astype(np.float32)),
    pgm(X_RAY, 4095),
    pgm(X_RAY, 65535),
    npy(X_RAY),
    npy(X_RAY.astype(np.float64)),
    npy(X_RAY.astype(np.int32)),
  ],
  ids=range(11),
)
def test_a_value_range_keeps_all_levels(data):
  found = wide(data, (0.0, 4095.0))
  assert len(np.unique(found)) == 4096
  np.testing.assert_allclose(found[..., 0], X_RAY / 4095, atol=1e-6)
  clipped = wide(data, (1000.0, 3000.0), 3)
  wanted = ((X_RAY - 1000.0) / 2000).clip(0, 1)
  np.testing.assert_allclose(clipped, wanted[..., None] + [0] * 3, atol=1e-6)


def test_signed_values_have_a_range():
  values = np.arange(-8, 8).reshape(4, 4)
  for kind in ("i1", "i2"):
    found = wide(tiff(values.astype(kind)), (-8.0, 7.0))
    np.testing.assert_allclose(found[..., 0], (values + 8) / 15, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", ["jpeg", "png"])
def test_8_bits_with_a_value_range_are_the_same(photo, form, channels):
  data = encode(photo, format=form)
  found = wide(data, (0.0, 255.0), channels)
  np.testing.assert_allclose(found * 255, decoded(data, channels), atol=1e-3)


def test_values_that_cannot_be_kept_are_refused():
  deep = np.zeros((4, 4, 3), np.uint16)
  for data, words in (
    (tiff(deep, photometric="rgb"), "colors have 16 bits"),
    (npy(np.full((4, 4), np.nan, np.float32)), "not all finite"),
  ):
    _, reason = read(data, value_range=(0.0, 1.0))
    assert words in reason
  assert decoded(tiff(deep, photometric="rgb")).shape == (4, 4, 3)


# Images of 4 x 4 pixels, which Pillow cannot write: an AVIF of 10 bits and a
# JPEG 2000 of 16, by imagecodecs.
AVIF = base64.b64decode(
  "AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUEAAADrbWV0YQAAAAAAAAAhaGRscgAAAAAA"
  "AAAAcGljdAAAAAAAAAAAAAAAAAAAAAAOcGl0bQAAAAAAAQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEA"
  "AAETAAAAIAAAAChpaW5mAAAAAAABAAAAGmluZmUCAAAAAAEAAGF2MDFDb2xvcgAAAABqaXBycAAA"
  "AEtpcGNvAAAAFGlzcGUAAAAAAAAABAAAAAQAAAAQcGl4aQAAAAADCgoKAAAADGF2MUOBIEAAAAAA"
  "E2NvbHJuY2x4AAIAAgAGgAAAABdpcG1hAAAAAAAAAAEAAQQBAoMEAAAAKG1kYXQSAAoIOAR9vAgI"
  "GkAyEh7CYqTgABYAABDFslJl1k9b1g=="
)
JP2 = base64.b64decode(
  "AAAADGpQICANCocKAAAAFGZ0eXBqcDIgAAAAAGpwMiAAAAAtanAyaAAAABZpaGRyAAAABAAAAAQA"
  "Aw8HAAAAAAAPY29scgEAAAAAABAAAACTanAyY/9P/1EALwAAAAAABAAAAAQAAAAAAAAAAAAAAAQA"
  "AAAEAAAAAAAAAAAAAw8BAQ8BAQ8BAf9SAA0BAgABAQAEBAAAiP9cAAVCgAD/ZAAlAAFDcmVhdGVk"
  "IGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAAAZAAH/k88OEYPLBOHYUoCA/9k="
)


@pytest.mark.parametrize(
  ("data", "bits"),
  [
    (AVIF, 10),
    (JP2, 16),
    (JP2[JP2.index(b"\xff\x4f") :], 16),
    (tiff(np.zeros((4, 4, 3), np.uint16), photometric="rgb"), 16),
    (b"P6 2 1 4095\n" + bytes(12), 12),
  ],
  ids=["avif", "jp2", "j2k", "tiff", "ppm"],
)
def test_colors_of_more_than_8_bits_are_said_once(data, bits, capsys):
  for _ in range(2):
    assert decoded(data).shape[-1] == 3
    image_headers.print_notes()
  told = capsys.readouterr().err
  assert told.count(f"colors of an image have {bits} bits, of which 8") == 1
  _, reason = read(data, value_range=(0.0, 1.0))
  assert f"its colors have {bits} bits" in reason


@pytest.mark.parametrize("form", ["avif", "jpeg2000", "png", "ppm", "tiff"])
def test_colors_of_8_bits_are_not_reported(photo, form, capsys):
  wide(encode(photo, format=form), (0.0, 255.0), 3)
  decoded(encode(photo, format=form))
  decoded(b"P6 2 1 100\n" + bytes(6))
  image_headers.print_notes()
  assert not capsys.readouterr().err


def test_levels_that_8_bits_lose_are_said_once(monkeypatch, capsys):
  monkeypatch.setattr(image_headers, "notes", {})
  decoded(encode((X_RAY & 15) << 12, format="png"))  # as many in 8 bits
  image_headers.print_notes()
  assert not capsys.readouterr().err
  for data in (encode(X_RAY, format="png"), npy(X_RAY)):
    decoded(data)
    image_headers.print_notes()
  told = capsys.readouterr().err
  assert told.count("8 bits keep 16 of the 4096 gray levels") == 1


@pytest.mark.parametrize("array", [np.float32([[0.5]]), np.int32([[70_000]])])
def test_pixels_of_no_known_range_are_refused(array):
  image, reason = read(encode(array, format="tiff"))
  assert re.search("32 bits and no known range|signed .* no known", reason)
  assert image.shape == (1, 1, 3)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("form", ["jpeg", "png", "webp", "tiff"])
def test_images_are_rotated_by_their_exif_tag(photo, form, turn):
  exif = Image.Exif()
  exif[0x112] = turn
  data = encode(photo, format=form, exif=exif, quality=90)
  stored = Image.open(io.BytesIO(data))
  exif_rotate = np.asarray(ImageOps.exif_transpose(stored))
  np.testing.assert_array_equal(decoded(data), exif_rotate)
  raw = decoded(data, exif_rotate=False)
  if form == "tiff":  # Pillow rotates it without being asked
    np.testing.assert_array_equal(raw, exif_rotate)
  else:
    np.testing.assert_array_equal(raw, by_pillow(data, 3))


def test_a_crop_of_a_rotated_image(photo):
  exif = Image.Exif()
  exif[0x112] = 6
  data = encode(photo, format="png", exif=exif)
  found, reason = decode.decode(
    {"image": tf.constant(data)},
    Reading(3, True),
    box=lambda shape: tf.stack([shape[0] - 5, 2, 5, 7]),
  )
  assert reason == b""
  whole = decoded(data)
  assert whole.shape == (41, 30, 3)
  np.testing.assert_array_equal(found, whole[-5:, 2:9])


@pytest.mark.parametrize("form", ["gif", "webp", "tiff", "png"])
def test_the_first_frame_is_used(form):
  frames = [Image.new("RGB", (5, 4), color) for color in ("red", "blue")]
  how = {"lossless": True} if form == "webp" else {}
  data = encode(
    frames[0], format=form, save_all=True, append_images=frames[1:], **how
  )
  expected = np.full((4, 5, 3), [255, 0, 0])
  np.testing.assert_array_equal(decoded(data), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
@pytest.mark.parametrize("form", ["jpeg", "png", "webp", "bmp", "gif", "tiff"])
def test_thin_images(form, size):
  data = encode(Image.new("RGB", size, (200, 10, 30)), format=form)
  np.testing.assert_array_equal(decoded(data), by_pillow(data, 3))


def test_arrays(photos):
  photo = photos[0][:20, :30]
  gray = by_pillow(encode(photo, format="png"), 1)
  five = np.arange(20 * 30 * 5).astype(np.uint8).reshape(20, 30, 5)
  wide = five.astype(">u2") * 250
  for array, channels, expected in (
    (photo, 3, photo),
    (np.asfortranarray(photo), 3, photo),
    (photo, 1, gray),
    (gray, 1, gray),
    (gray[..., 0], 3, np.repeat(gray, 3, -1)),
    (five, 5, five),
    (wide, 5, wide >> 8),
  ):
    np.testing.assert_array_equal(decoded(npy(array), channels), expected)


@pytest.mark.parametrize(
  ("data", "channels", "words"),
  [
    (npy(np.zeros((4, 4))), 3, "array of float64: save it as uint8"),
    (npy(np.zeros((4, 4, 4), np.uint8)), 3, "with 4 channels.*data.channels=3"),
    (npy(np.zeros((4, 4, 3), np.uint8)), 5, "with 3 channels.*data.channels=5"),
    (npy(np.zeros((2, 4, 4, 3), np.uint8)), 3, "save it as .H, W, C"),
    (npy(np.zeros((0, 4), np.uint8)), 3, "save it as .H, W, C"),
    (npy(np.zeros((9, 9), np.uint8))[:-1], 1, "truncated: 80 of 81 bytes"),
    (npy(np.array([{}]), allow_pickle=True), 3, "array of object"),
    (encode(np.zeros((4, 4), np.uint8), format="png"), 5, "not a .npy file"),
    (b"", 3, "it is empty"),
    (b"<html>not found</html>", 3, "begins with b'<html>not fo"),
    (b"version https://git-lfs.github.com/spec/v1\n", 3, "git lfs pull"),
    (b"\xff\xd8\xff", 3, "."),
  ],
)
def test_reasons_say_what_is_wrong(data, channels, words):
  image, reason = read(data, channels)
  assert image.shape == (1, 1, channels)
  assert re.search(words, reason), reason


def test_an_image_of_too_many_pixels_is_not_decoded():
  data = bytearray(encode(np.zeros((4, 4), np.uint8), format="png"))
  data[16:24] = (1 << 16).to_bytes(4, "big") + (1 << 15).to_bytes(4, "big")

  data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
  _, reason = read(bytes(data))
  assert "65536 x 32768 is more than data.max_image_pixels=201326592" in reason


def huge(form):
  """Makes a few bytes that claim more than 2^28 pixels."""
  small = bytearray(encode(Image.new("RGB", (8, 8)), format=form))
  if form == "gif":
    small[6:10] = (27232).to_bytes(2, "little") * 2
    frame = small.index(b",\0\0\0\0") + 5
    small[frame : frame + 4] = (27232).to_bytes(2, "little") * 2
  elif form == "jpeg":
    frame = small.index(b"\xff\xc0") + 5
    small[frame : frame + 4] = (32767).to_bytes(2, "big") * 2
  elif form == "webp":  # lossy
    small[26:30] = (16383).to_bytes(2, "little") * 2
  elif form == "bmp":
    small[18:26] = (32767).to_bytes(4, "little") * 2
  elif form == "ppm":
    small = bytearray(b"P6 32767 32767 255\n")
  return bytes(small)


@pytest.mark.parametrize("form", ["gif", "jpeg", "webp", "bmp", "ppm"])
def test_few_bytes_that_claim_a_huge_image_are_refused(form, monkeypatch):
  def load(image):
    raise AssertionError("it is decoded")

  monkeypatch.setattr(image_io, "_load_pixels", load)
  image, reason = read(huge(form))
  assert re.search(r"\d+ x \d+ is more than data.max_image_pixels", reason)
  assert image.shape == (1, 1, 3)


@pytest.mark.parametrize("form", ["jpeg", "png"])
def test_the_bound_on_pixels_is_a_setting(photo, form):
  data = encode(photo, format=form)
  size = photo.width * photo.height
  np.testing.assert_array_equal(
    decoded(data, max_pixels=size), by_pillow(data, 3)
  )
  _, reason = read(data, max_pixels=size - 1)
  assert f"41 x 30 is more than data.max_image_pixels={size - 1}" in reason


def test_large_images_are_decoded_one_at_a_time(photo, monkeypatch):
  data = encode(photo, format="jpeg")
  expected = decoded(data)
  held = []
  load = image_io._load_pixels

  def watched(*args):
    held.append(image_io._one_large_image.locked())
    load(*args)

  monkeypatch.setattr(image_io, "_load_pixels", watched)
  monkeypatch.setattr(image_io, "LARGE_PIXELS", 1000)
  _decoder.cache_clear()
  np.testing.assert_array_equal(decoded(data), expected)
  assert held == [True, True]  # in the graph too
  assert not image_io._one_large_image.locked()
  _decoder.cache_clear()


def with_segments(data, number, size):
  """Puts Exif segments into a JPEG, of `size` bytes each."""
  segment = b"Exif\0\0".ljust(size - 2, b"x")
  segment = b"\xff\xe1" + size.to_bytes(2, "big") + segment
  return data[:2] + segment * number + data[2:]


@pytest.mark.parametrize(
  ("number", "size"), [(20, 50_000), (5000, 10)], ids=["bytes", "parts"]
)
@pytest.mark.parametrize("exif_rotate", [True, False])
def test_metadata_may_cost_little(
  photo, number, size, exif_rotate, tmp_path, monkeypatch
):
  data = with_segments(encode(photo, format="jpeg"), number, size)
  monkeypatch.setattr(image_headers, "MAX_METADATA", 400_000)
  work = []
  read_part = image_headers._Bounded.read

  def counted(file, *args):
    work.append(len(part := read_part(file, *args)))
    return part

  monkeypatch.setattr(image_headers._Bounded, "read", counted)
  _, reason = read(data, exif_rotate=exif_rotate)
  assert "its metadata has more than" in reason
  # The graph, its repetition without errors, and the commands: each looks once.
  assert sum(work) < 3 * 450_000
  assert len(work) < 3 * (image_headers.MAX_READS + 10)
  (tmp_path / "x").write_bytes(data)
  assert not image_headers.is_image(str(tmp_path / "x"))


def test_usual_metadata_is_read(photo):
  exif = Image.Exif()
  exif[0x112] = 6
  data = encode(photo, format="jpeg", exif=exif, icc_profile=b"x" * 3_000_000)
  data = with_segments(data, 30, 60_000)
  assert decoded(data, exif_rotate=False).shape == (30, 41, 3)
  info = PngImagePlugin.PngInfo()
  info.add_text("workflow", "x" * 3_000_000, zip=True)
  data = encode(photo, format="png", pnginfo=info, icc_profile=b"x" * 3_000_000)
  np.testing.assert_array_equal(decoded(data), photo)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_that_is_a_few_bytes_short(photo, options):
  data = encode(photo, format="jpeg", quality=90, **options)
  whole = decoded(data).astype(int)
  for short in (1, 2, 5):
    _, reason = read(data[:-short])
    assert "truncated" in reason
    image = decoded(data[:-short], truncated=True)
    assert np.abs(image - whole).mean() < 3
  most = decoded(data[: len(data) * 9 // 10], truncated=True)
  assert most.shape == whole.shape
  if not options:  # the rows above are those of the whole image
    np.testing.assert_array_equal(most[:8], whole[:8])


@pytest.mark.parametrize("form", ["png", "bmp", "ppm"])
def test_the_rows_of_other_truncated_files(photo, form):
  data = encode(photo, format=form)
  cut = data[: len(data) * 3 // 4]
  _, reason = read(cut)
  assert "truncated" in reason or "process" in reason
  image = decoded(cut, truncated=True)
  whole = decoded(data)
  rows = slice(-10, None) if form == "bmp" else slice(0, 10)
  np.testing.assert_array_equal(image[rows], whole[rows])
  _, reason = read(data[:8], truncated=True)
  assert reason


def test_avif_and_heic_by_content(photo, tmp_path):
  data = encode(photo, format="avif")
  (tmp_path / "x").write_bytes(data)
  assert image_headers.is_image(str(tmp_path / "x"))
  heic = data[:8] + b"heic" + data[12:]
  _, reason = read(heic[:200])
  assert "it is HEIC, which needs a plugin: pip install pillow-heif" in reason


def test_gray_maps_of_16_bits():
  gray = np.arange(200 * 4, dtype=np.uint16).reshape(4, 200) * 80
  data = b"P5 200 4 65535\n" + gray.astype(">u2").tobytes()
  np.testing.assert_array_equal(decoded(data, 1)[..., 0], gray >> 8)


def test_a_missing_file(tmp_path):
  (tmp_path / "folder.jpg").mkdir()
  for name, words in (("a.jpg", "No such file"), ("folder.jpg", "Is a dir")):
    record = {"file": tf.constant(str(tmp_path / name))}
    _, reason = decode.decode(record, Reading(3, True))
    assert words in reason.numpy().decode()


FORMS = ("jpeg", "png", "webp", "bmp", "gif", "tiff")


@pytest.mark.parametrize("form", FORMS)
def test_truncated_files(photo, form):
  """A file truncated anywhere raises nothing, and no JPEG passes as whole."""
  data = encode(photo, format=form)
  for length in np.linspace(0, len(data) - 1, 40).astype(int):
    image, reason = read(data[:length])
    assert image.ndim == 3
    if reason:
      assert image.shape == (1, 1, 3)
    else:
      assert form != "jpeg"
      assert image.shape == (30, 41, 3)
      assert length > 0.9 * len(data)


@pytest.mark.parametrize("form", FORMS)
def test_flipped_bits(photo, form):
  """Flips 200 bits, one at a time: an image or a reason, never an exception."""
  data = encode(photo, format=form)
  rng = np.random.default_rng(0)
  for place in rng.integers(0, 8 * len(data), 200):
    broken = bytearray(data)
    broken[place // 8] ^= 1 << place % 8
    image, reason = read(bytes(broken))
    assert image.ndim == 3
    assert not reason or image.shape == (1, 1, 3)
