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
  scale = 10 if width == 12 else 1  # at least 112 pixels wide
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
  black = np.zeros((112, 112, 3), np.uint8)
  sheet = image_grid.draw_grid(
    [[black, None]],
    ("a", "what is alarming"),
    [["two\nlines", ""]],
    ["what is alarming"],
  )
  assert sheet.shape == (18 + 112 + 32 + 4, 4 + 2 * 116, 3)
  assert (sheet[18:130, 4:116] == 0).all()
  assert (sheet[18:, 120:] == 255).all()
  below = sheet[130:162, 4:116]
  assert (below[:16] < 128).any()
  assert (below[16:] < 128).any()
  # A highlighted title is red.
  title = sheet[:18, 120:].astype(int)
  assert (title[..., 0] - title[..., 1] > 100).any()
  title = sheet[:18, :116].astype(int)
  assert (title[..., 0] == title[..., 1]).all()


def test_long_titles_are_shortened():
  white = np.full((112, 112, 3), 255, np.uint8)
  long = "a title that is too long"
  sheet = image_grid.draw_grid([[white, white]], (long, ""))
  assert (sheet[:18, :118] < 128).any()
  assert (sheet[:18, 120:] == 255).all()


def test_letters_of_other_languages_are_written():
  white = np.full((112, 112, 3), 255, np.uint8)
  # A font without these letters would draw the same box for each.
  sheet = image_grid.draw_grid([[white] * 3], ("\u00fc", "\u00e9", "\u0436"))
  first, second, third = (sheet[:18, x : x + 112] for x in (4, 120, 236))
  assert (first < 128).any()
  assert (first != second).any()
  assert (second != third).any()


def test_shortened_names_keep_their_end():
  white = np.full((112, 112, 3), 255, np.uint8)
  names = [f"{'a long name ' * 5}{end}.png" for end in "xy"]
  sheet = image_grid.draw_grid([[white] * 3], [*names, names[0]])
  first, second, third = (sheet[:18, x : x + 112] for x in (4, 120, 236))
  assert (first == third).all()
  assert (first != second).any()
