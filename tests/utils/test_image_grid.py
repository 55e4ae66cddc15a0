"""Tests of the grid of images: positions, titles and captions."""

from __future__ import annotations

import numpy as np
import pytest

from mae_jax.utils import image_grid


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [(8, 12), (160, 224)])
def test_cells(channels: int, height: int, width: int):
  random = np.random.default_rng(0)
  pictures = random.integers(0, 256, (2, 3, height, width, channels), np.uint8)
  sheet = image_grid.draw_grid(pictures, ("one", "two", "three"))
  scale = 11 if width == 12 else 1  # at least 128 pixels wide
  rows, columns = height * scale, width * scale
  assert sheet.dtype == np.uint8
  assert sheet.shape == (18 + 2 * (rows + 4), 4 + 3 * (columns + 4), 3)
  for row in range(2):
    for column in range(3):
      top, left = 18 + row * (rows + 4), 4 + column * (columns + 4)
      cell = sheet[top : top + rows, left : left + columns]
      small = pictures[row, column].astype(float)
      if channels != 3:
        small = np.repeat(small.mean(axis=-1, keepdims=True), 3, axis=-1)
      wanted = small.repeat(scale, axis=0).repeat(scale, axis=1)
      assert np.abs(cell - wanted).max() <= 0.5
  # Titles are above, and gaps between cells are white.
  assert (sheet[:18] < 128).any()
  assert (sheet[18:, :4] == 255).all()


def test_captions_are_below_and_empty_cells_are_white():
  black = np.zeros((128, 128, 3), np.uint8)
  sheet = image_grid.draw_grid(
    [[black, None]],
    ("a", "what is alarming"),
    [["two\nlines", ""]],
    highlighted=["what is alarming"],
  )
  assert sheet.shape == (18 + 128 + 32 + 4, 4 + 2 * 132, 3)
  assert (sheet[18:146, 4:132] == 0).all()
  assert (sheet[18:, 136:] == 255).all()
  below = sheet[146:178, 4:132]
  assert (below[:16] < 128).any()
  assert (below[16:] < 128).any()
  # A highlighted title is red.
  title = sheet[:18, 136:].astype(int)
  assert (title[..., 0] - title[..., 1] > 100).any()
  title = sheet[:18, :132].astype(int)
  assert (title[..., 0] == title[..., 1]).all()


def test_long_text_is_wrapped_and_long_words_are_shortened():
  white = np.full((128, 128, 3), 255, np.uint8)
  words, word = (
    "a title that is longer than its image",
    "one_word_that_is_much_too_long",
  )
  sheet = image_grid.draw_grid([[white] * 3], (words, word, ""))
  assert sheet.shape[0] == 2 + 2 * 16 + 128 + 4
  assert (sheet[:18, :132] < 128).any()
  assert (sheet[18:34, :132] < 128).any()
  assert (sheet[:18, 136:264] < 128).any()
  assert (sheet[18:, 136:] == 255).all()
  assert (sheet[:, 268:] == 255).all()


def test_text_has_one_size():
  """A long caption does not shrink; the letters of both rows are equal."""
  white = np.full((128, 128, 3), 255, np.uint8)
  sheet = image_grid.draw_grid(
    [[white, white]], ("", ""), [["short", "short " * 9]]
  )
  one, two = (sheet[130:146, x : x + 25] for x in (4, 136))
  assert (one < 128).any()
  np.testing.assert_array_equal(one, two)


def test_masked_pixels_are_hatched_at_the_scale_of_the_sheet():
  dark = np.full((2, 2, 1), 40, np.uint8)
  left = np.array([[True, False]] * 2)
  cell = image_grid.Cell(dark, hatched=left, blank=~left)
  sheet = image_grid.draw_grid([[cell]], [""])
  hatched, blank = sheet[2:130, 4:68], sheet[2:130, 68:132]
  assert set(np.unique(hatched)) == {120, 232}
  assert set(np.unique(blank)) == {232}
  # Diagonal lines: equal along one diagonal, different along a row.
  np.testing.assert_array_equal(hatched[1:, :-1], hatched[:-1, 1:])
  assert len(np.unique(hatched[0])) == 2


def test_heading_scale_and_background():
  white = np.full((128, 128, 3), 255, np.uint8)
  plain = image_grid.draw_grid([[white]], ["title"])
  scale = image_grid.ColorScale("magma", "0", "9")
  sheet = image_grid.draw_grid(
    [[white]], ["title"], heading="digits, step 7", scale=scale
  )
  assert len(sheet) == len(plain) + 20 + 20
  np.testing.assert_array_equal(sheet[20 : 20 + len(plain)], plain)
  assert (sheet[:18] < 128).any()
  strip = sheet[-20:].astype(int)
  colored = np.ptp(strip, axis=-1) > 60
  assert colored.any()
  gray = image_grid.draw_grid([[white]], [""], background="gray")
  assert (gray[:, :4] == 128).all()


def test_letters_of_other_languages_are_written():
  white = np.full((128, 128, 3), 255, np.uint8)
  # A font without these letters would draw the same box for each.
  sheet = image_grid.draw_grid([[white] * 3], ("\u00fc", "\u00e9", "\u0436"))
  first, second, third = (sheet[:18, x : x + 128] for x in (4, 136, 268))
  assert (first < 128).any()
  assert (first != second).any()
  assert (second != third).any()


def test_shortened_names_keep_their_end():
  white = np.full((128, 128, 3), 255, np.uint8)
  names = [f"{'a_long_name_' * 5}{end}.png" for end in "xy"]
  sheet = image_grid.draw_grid([[white] * 3], [*names, names[0]])
  first, second, third = (sheet[:18, x : x + 128] for x in (4, 136, 268))
  assert (first == third).all()
  assert (first != second).any()
