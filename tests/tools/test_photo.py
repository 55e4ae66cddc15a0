"""Tests of crops of photographs, and of pasting reconstructions back."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
import skimage.data
from PIL import Image

from mae_jax.data import image_files, image_headers, prepare, preprocess
from mae_jax.data.image_headers import Reading
from mae_jax.tools import photo as photos
from tests.helpers import tiny

DATA = dataclasses.replace(
  tiny.config().data, image_size=(24, 32), channels=3, eval_crop=0.8
)


def draw(height: int, width: int, channels: int = 3) -> np.ndarray:
  """Makes a smooth image, like a photograph."""
  random = np.random.default_rng(height)
  coarse = random.integers(0, 256, (4, 4, channels), np.uint8)
  return prepare.resize(coarse, (height, width))


@pytest.mark.parametrize("size", [(240, 320), (50, 300), (300, 40), (31, 37)])
def test_the_crop_is_that_of_evaluation(size, tmp_path):
  image = draw(*size)
  Image.fromarray(image).save(tmp_path / "x.png")
  photo = photos.fit(
    image_files.read(tmp_path / "x.png", Reading(3, True)), DATA
  )
  np.testing.assert_array_equal(photo.whole, image)
  np.testing.assert_array_equal(photo.shown, prepare.fit(image, DATA))
  wanted, reason = preprocess.fit(
    {"file": str(tmp_path / "x.png").encode()},
    reading=Reading(3, True),
    **preprocess.fit_settings(DATA),
  )
  assert reason == b""
  assert np.abs(photo.shown.astype(int) - wanted.numpy()).max() <= 2
  # The box in the photograph holds the same pixels.
  again = prepare.resize(image, DATA.image_size, photo.box).astype(int)
  assert np.abs(photo.shown - again)[2:-2, 2:-2].mean() < 2


def test_an_image_of_the_right_size_is_not_changed():
  data = dataclasses.replace(DATA, eval_crop=1.0)
  for how in prepare.FITS:
    image = draw(24, 32)
    photo = photos.fit(image, prepare.with_fit(data, how))
    assert photo.box == (0, 0, 24, 32)
    np.testing.assert_array_equal(photo.shown, image)


def test_squashing_keeps_the_whole_image():
  image = draw(100, 37)
  photo = photos.fit(image, prepare.with_fit(DATA, "squash"))
  assert photo.box == (0, 0, 100, 37)
  wanted = Image.fromarray(image).resize((32, 24), Image.Resampling.BICUBIC)
  np.testing.assert_array_equal(photo.shown, np.asarray(wanted))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2000, 3)])
def test_any_size_and_number_of_channels(size, channels: int):
  for how in prepare.FITS:
    photo = photos.fit(draw(*size, channels), prepare.with_fit(DATA, how))
    assert photo.shown.shape == (24, 32, channels)
    assert photo.shown.dtype == np.uint8


@pytest.mark.parametrize("how", prepare.FITS)
@pytest.mark.parametrize("size", [(24, 32), (97, 61), (400, 300), (9, 5)])
def test_only_masked_patches_are_reconstructed(size, how: str):
  image = draw(*size)
  photo = photos.fit(image, prepare.with_fit(DATA, how))
  hidden = np.random.default_rng(0).random((3, 4)) < 0.5
  painted = np.zeros_like(photo.shown)
  painted[...] = (255, 0, 255)
  whole = photos.paste(photo, painted, photos.cover_patches(photo, hidden))
  top, left, height, width = photo.box
  for y in range(size[0]):
    for x in range(size[1]):
      row = int(np.floor((y + 0.5 - top) / height * 3))
      column = int(np.floor((x + 0.5 - left) / width * 4))
      inside = 0 <= row < 3 and 0 <= column < 4
      wanted = image[y, x]
      if inside and hidden[row, column]:
        wanted = (255, 0, 255)
      assert tuple(whole[y, x]) == tuple(wanted)


def test_reconstructions_return_to_their_places():
  """A photograph hardly changes if its reconstruction is itself."""
  image = skimage.data.chelsea()
  photo = photos.fit(image, prepare.with_fit(DATA, "squash"))
  cover = photos.cover_patches(photo, np.ones((3, 4), bool))
  whole = photos.paste(photo, photo.shown, cover)
  blurred = prepare.resize(photo.shown, image.shape[:2])
  np.testing.assert_array_equal(whole, blurred)


@pytest.mark.parametrize("how", prepare.FITS)
def test_a_patch_is_masked_if_any_pixel_is_missing(how: str):
  image = draw(240, 320)
  photo = photos.fit(image, prepare.with_fit(DATA, how))
  top, left, height, width = photo.box
  random = np.random.default_rng(0)
  for _ in range(50):
    missing = np.zeros((240, 320), bool)
    y, x = random.integers(240), random.integers(320)
    missing[y, x] = True
    found = photos.snap(missing, photo, (3, 4))
    for row in range(3):
      for column in range(4):
        y0, x0 = top + row * height / 3, left + column * width / 4
        touched = y0 - 1 < y < y0 + height / 3 and x0 - 1 < x < x0 + width / 4
        # A pixel covers y to y + 1.
        assert found[row, column] == touched


def test_masks_snap_to_patches_exactly():
  photo = photos.fit(draw(24, 32), dataclasses.replace(DATA, eval_crop=1.0))
  missing = np.zeros((24, 32), bool)
  missing[8:16, 8:24] = True
  wanted = np.zeros((3, 4), bool)
  wanted[1, 1:3] = True
  np.testing.assert_array_equal(photos.snap(missing, photo, (3, 4)), wanted)


@pytest.mark.parametrize("how", prepare.FITS)
def test_a_reconstruction_is_mixed_around_missing_pixels(how: str):
  image = draw(120, 90)
  photo = photos.fit(image, prepare.with_fit(DATA, how))
  missing = np.zeros((120, 90), bool)
  missing[60, 20:50] = missing[50:70, 40] = True
  painted = np.full_like(photo.shown, 250)
  whole = photos.paste(photo, painted, photos.soften(missing))
  rows, columns = np.nonzero(missing)
  for y in range(120):
    for x in range(90):
      distance = np.hypot(rows - y, columns - x).min()
      weight = max(0.0, 1 - distance / 4)
      wanted = np.round(image[y, x] + weight * (250.0 - image[y, x]))
      assert tuple(whole[y, x]) == tuple(wanted)


def test_masks_are_read_as_gray(tmp_path):
  picture = np.zeros((4, 5, 3), np.uint8)
  picture[1, 2] = 255
  Image.fromarray(picture).save(tmp_path / "m.png")
  mask = photos.read_mask(tmp_path / "m.png")
  assert mask.dtype == bool
  assert list(zip(*np.nonzero(mask), strict=True)) == [(1, 2)]


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (200, 20, 30)])
def test_masks_may_be_drawn_on_a_transparent_layer(tmp_path, color):
  """Covers a canvas, whose other pixels are transparent black or white."""
  for hidden in (0, 255):
    picture = np.full((20, 30, 4), hidden, np.uint8)
    picture[..., 3] = 0
    picture[5:9, 4:20] = (*color, 255)
    picture[9, 4:20] = (*color, 100)  # a soft edge
    Image.fromarray(picture).save(tmp_path / "m.png")
    wanted = np.zeros((20, 30), bool)
    wanted[5:9, 4:20] = True
    np.testing.assert_array_equal(photos.read_mask(tmp_path / "m.png"), wanted)


def test_masks_of_black_and_white_with_transparent_parts(tmp_path):
  picture = np.full((20, 30, 4), 255, np.uint8)
  picture[:, :10] = (0, 0, 0, 255)
  picture[:, 20:, 3] = 0
  Image.fromarray(picture).save(tmp_path / "m.png")
  wanted = np.zeros((20, 30), bool)
  wanted[:, 10:20] = True
  np.testing.assert_array_equal(photos.read_mask(tmp_path / "m.png"), wanted)


def test_masks_may_be_erased_from_the_photograph(tmp_path):
  picture = np.dstack([draw(24, 32), np.full((24, 32), 255, np.uint8)])
  picture[3:9, 5:11, 3] = 0
  Image.fromarray(picture).save(tmp_path / "m.png")
  np.testing.assert_array_equal(
    photos.read_mask(tmp_path / "m.png"), picture[..., 3] == 0
  )


def test_unreadable_and_missing_files_are_reported(tmp_path):
  (tmp_path / "x.png").write_bytes(b"no image")
  with pytest.raises(
    image_headers.UnreadableError, match=r"Unidentified|no image"
  ):
    image_files.read(tmp_path / "x.png", Reading(3, True))
  with pytest.raises(image_headers.UnreadableError, match="No such file"):
    image_files.read(tmp_path / "y.png", Reading(3, True))
  os.mkfifo(tmp_path / "z.png")
  with pytest.raises(image_headers.UnreadableError, match="a pipe or a device"):
    photos.read_mask(tmp_path / "z.png")
