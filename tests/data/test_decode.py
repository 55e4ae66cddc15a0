"""Tests of decoding against Pillow, and of unreadable files."""

from __future__ import annotations

import functools
import io
import re
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from mae_jax.data import decode
from tests.data.conftest import encode


@functools.cache
def _decoder(channels, exif_rotate):
  return tf.function(
    lambda data: decode.decode(
      {"image": data}, channels=channels, exif_rotate=exif_rotate
    ),
    autograph=False,
    input_signature=[tf.TensorSpec([], tf.string)],
  )


def read(data, channels=3, exif_rotate=True):
  """Decodes a file; returns the image, and the reason or ""."""
  image, reason = _decoder(channels, exif_rotate)(tf.constant(data))
  return image.numpy(), reason.numpy().decode()


def decoded(data, channels=3, exif_rotate=True):
  image, reason = read(data, channels, exif_rotate)
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
    decoded(data, channels), by_pillow(data, channels)
  )


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


@pytest.mark.parametrize("array", [np.float32([[0.5]]), np.int32([[70_000]])])
def test_pixels_of_no_known_range_are_refused(array):
  image, reason = read(encode(array, format="tiff"))
  assert "have 32 bits and no known range: save it with 8 or 16" in reason
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
    channels=3,
    exif_rotate=True,
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


def npy(array, **options):
  buffer = io.BytesIO()
  np.save(buffer, array, **options)
  return buffer.getvalue()


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
  assert "65536 x 32768 is more than 1073741824 pixels" in reason


def test_a_missing_file(tmp_path):
  (tmp_path / "folder.jpg").mkdir()
  for name, words in (("a.jpg", "No such file"), ("folder.jpg", "Is a dir")):
    record = {"file": tf.constant(str(tmp_path / name))}
    _, reason = decode.decode(record, channels=3, exif_rotate=True)
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
