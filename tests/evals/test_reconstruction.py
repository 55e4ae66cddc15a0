"""Pictures show what the model knew: no hidden pixel helps to draw them."""

from __future__ import annotations

import numpy as np
import pytest

from mae_jax.evals import reconstruction
from tests import reference

BATCH, SIZE, PATCH = 3, (8, 12), (4, 3)
GRID, LENGTH = (2, 4), 8


def draw(channels: int):
  """Images, the mask of patches, and the same by pixel."""
  random = np.random.default_rng(6)
  images = random.integers(0, 256, (BATCH, *SIZE, channels), np.uint8)
  mask = np.zeros((BATCH, LENGTH), np.float32)
  for row in mask:
    row[random.permutation(LENGTH)[:5]] = 1
  hidden = np.zeros((BATCH, *SIZE, 1), bool)
  for b in range(BATCH):
    for y in range(SIZE[0]):
      for x in range(SIZE[1]):
        number = (y // PATCH[0]) * GRID[1] + x // PATCH[1]
        hidden[b, y, x] = mask[b, number] == 1
  return images, mask, np.broadcast_to(hidden, images.shape)


def statistics(channels: int) -> dict:
  return {
    "mean": (0.4, 0.5, 0.3)[:channels],
    "std": (0.2, 0.3, 0.25)[:channels],
  }


def panels(images, pred, mask, *, normalized: bool) -> np.ndarray:
  return reconstruction.panels(
    images,
    pred.astype(np.float32),
    mask,
    patch_size=PATCH,
    normalized=normalized,
    **statistics(images.shape[-1]),
  )


def targets(images: np.ndarray) -> np.ndarray:
  values = statistics(images.shape[-1])
  x = (images / 255 - np.array(values["mean"])) / np.array(values["std"])
  return reference.patchify(x, PATCH)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("normalized", [True, False])
def test_what_is_visible_is_the_image_bit_for_bit(channels, normalized: bool):
  images, mask, hidden = draw(channels)
  pred = np.random.default_rng(1).normal(size=targets(images).shape)
  original, masked, drawn, pasted = np.moveaxis(
    panels(images, pred, mask, normalized=normalized), 1, 0
  )
  assert original.dtype == np.uint8
  assert original.shape == images.shape
  np.testing.assert_array_equal(original, images)
  np.testing.assert_array_equal(masked[~hidden], images[~hidden])
  assert (masked[hidden] == 128).all()
  np.testing.assert_array_equal(pasted[~hidden], images[~hidden])
  np.testing.assert_array_equal(pasted[hidden], drawn[hidden])
  assert (drawn[~hidden] != images[~hidden]).any()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_perfect_prediction_is_the_original(channels: int):
  images, mask, _ = draw(channels)
  pictures = panels(images, targets(images), mask, normalized=False)
  np.testing.assert_array_equal(pictures[:, 2], images)
  np.testing.assert_array_equal(pictures[:, 3], images)


def test_predictions_out_of_range_are_clipped():
  images, mask, _ = draw(1)
  shape = targets(images).shape
  for value, wanted in ((-99.0, 0), (99.0, 255)):
    pictures = panels(images, np.full(shape, value), mask, normalized=False)
    assert (pictures[:, 2] == wanted).all()


@pytest.mark.parametrize("normalized", [True, False])
def test_hidden_pixels_are_never_read(normalized: bool):
  images, mask, hidden = draw(3)
  pred = np.random.default_rng(1).normal(size=targets(images).shape)
  changed = np.where(hidden, 255 - images, images)
  assert (changed != images).any()
  first = panels(images, pred, mask, normalized=normalized)
  second = panels(changed, pred, mask, normalized=normalized)
  np.testing.assert_array_equal(second[:, 1:], first[:, 1:])
  # While the visible ones are, where brightness has to be guessed.
  dark = panels(
    np.where(hidden, images, images // 2), pred, mask, normalized=normalized
  )
  assert (dark[:, 2] != first[:, 2]).any() == normalized


def test_statistics_are_those_of_visible_patches_by_distance():
  images, mask, _ = draw(1)
  target = targets(images)
  pred = np.random.default_rng(1).normal(size=target.shape).astype(np.float32)
  got = reconstruction.to_pixels(
    pred, target.astype(np.float32), mask, GRID, normalized=True
  )
  for b in range(BATCH):
    for i in range(LENGTH):
      weights, means, stds = [], [], []
      for j in range(LENGTH):
        if mask[b, j] == 0:
          rows, columns = i // GRID[1] - j // GRID[1], i % 4 - j % 4
          weights.append(1 / (rows**2 + columns**2 + 1e-6))
          means.append(target[b, j].mean())
          stds.append(np.sqrt(target[b, j].var(ddof=1) + 1e-6))
      mean, std = (np.average(x, weights=weights) for x in (means, stds))
      np.testing.assert_allclose(
        got[b, i], pred[b, i] * std + mean, rtol=0, atol=1e-5
      )


def test_a_visible_patch_keeps_its_own_statistics():
  images, mask, hidden = draw(1)
  pictures = panels(
    images, reference.normalize(targets(images)), mask, normalized=True
  )
  difference = pictures[:, 2].astype(int) - images
  assert np.abs(difference[~hidden]).max() <= 1
  assert np.abs(difference[hidden]).max() > 10


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [(8, 12), (160, 224)])
def test_sheet(channels: int, height: int, width: int):
  random = np.random.default_rng(0)
  pictures = random.integers(0, 256, (2, 4, height, width, channels), np.uint8)
  sheet = reconstruction.sheet(pictures)
  scale = 10 if width == 12 else 1  # at least 112 wide
  rows, columns = height * scale, width * scale
  assert sheet.dtype == np.uint8
  assert sheet.shape == (18 + 2 * (rows + 4), 4 + 4 * (columns + 4), 3)
  for row in range(2):
    for column in range(4):
      top, left = 18 + row * (rows + 4), 4 + column * (columns + 4)
      cell = sheet[top : top + rows, left : left + columns]
      small = pictures[row, column].astype(float)
      if channels != 3:
        small = np.repeat(small.mean(axis=-1, keepdims=True), 3, axis=-1)
      wanted = small.repeat(scale, axis=0).repeat(scale, axis=1)
      assert np.abs(cell - wanted).max() <= 0.5
  # Titles stand above, and between the cells it is white.
  assert (sheet[:18] < 128).any()
  assert (sheet[18:, :4] == 255).all()
