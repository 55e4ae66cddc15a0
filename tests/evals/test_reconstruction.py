"""Pictures use no masked pixel that the model did not see."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from mae_jax.evals import reconstruction
from mae_jax.utils.errors import ConfigError
from tests.helpers import numpy_reference

BATCH, SIZE, PATCH = 3, (8, 12), (4, 3)
GRID, LENGTH = (2, 4), 8


def draw(channels: int):
  """Samples images, and masks by patch and by pixel."""
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


def panels(images, pred, mask, **choice) -> np.ndarray:
  """Splits a sheet into [B, 4, H, W, C]: original, masked, ..."""
  painted = reconstruction.to_images(
    images,
    pred.astype(np.float32),
    mask,
    patch_size=PATCH,
    **statistics(images.shape[-1]),
    **choice,
  )
  return np.stack(
    [
      images,
      painted.masked(images),
      painted.reconstruction,
      painted.pasted(images),
    ],
    axis=1,
  )


def targets(images: np.ndarray) -> np.ndarray:
  values = statistics(images.shape[-1])
  x = (images / 255 - np.array(values["mean"])) / np.array(values["std"])
  return numpy_reference.patchify(x, PATCH)


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
  assert np.isin(masked[hidden], (120, 232)).all()  # hatched
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
  # Visible pixels do affect it, because brightness is estimated from them.
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
    images, numpy_reference.normalize(targets(images)), mask, normalized=True
  )
  difference = pictures[:, 2].astype(int) - images
  assert np.abs(difference[~hidden]).max() <= 1
  assert np.abs(difference[hidden]).max() > 10


@pytest.mark.parametrize("channels", [1, 3])
def test_with_true_statistics_it_is_the_exact_inverse(channels: int):
  images, mask, _ = draw(channels)
  pred = numpy_reference.normalize(targets(images))
  pictures = panels(images, pred, mask, normalized=True, statistics="true")
  np.testing.assert_array_equal(pictures[:, 2], images)
  # Only "true" statistics may read masked patches.
  visible = panels(images, pred, mask, normalized=True, statistics="visible")
  assert (visible[:, 2] != images).any()


def test_raw_predictions_are_left_as_they_are():
  images, mask, _ = draw(1)
  pred = np.random.default_rng(1).normal(size=targets(images).shape)
  raw = panels(images, pred, mask, normalized=True, statistics="raw")
  as_pixels = panels(images, pred, mask, normalized=False)
  np.testing.assert_array_equal(raw, as_pixels)


def test_unknown_statistics_are_told():
  images, mask, _ = draw(1)
  with pytest.raises(ConfigError, match=r"--statistics='mean'.*true"):
    panels(images, targets(images), mask, normalized=True, statistics="mean")


def test_the_sheet_of_an_evaluation():
  images, _, hidden = draw(1)
  painted = reconstruction.Reconstructed(255 - images, hidden[..., 0])
  sheet = reconstruction.sheet(images, painted)
  scale = 11  # at least 128 wide
  height, width = SIZE[0] * scale, SIZE[1] * scale
  assert sheet.shape == (18 + BATCH * (height + 4), 4 + 4 * (width + 4), 3)
  # Masked pixels are hatched, and the visible ones of the reconstruction gray.
  columns = (images, images, np.where(hidden, 255 - images, 232))
  columns += (np.where(hidden, 255 - images, images),)
  for column, pictures in enumerate(columns):
    for row, picture in enumerate(pictures):
      top, left = 18 + row * (height + 4), 4 + column * (width + 4)
      cell = sheet[top : top + height, left : left + width, :1]
      wanted, masked = (
        each.repeat(scale, axis=0).repeat(scale, axis=1)
        for each in (picture, hidden[row])
      )
      if column == 1:
        assert np.isin(cell[masked], (120, 232)).all()
        cell, wanted = cell[~masked], wanted[~masked]
      np.testing.assert_array_equal(cell, wanted)


def test_statistics_of_pixel_masks_are_of_the_visible_ones():
  """Masked pixels do not affect the result."""
  random = np.random.default_rng(0)
  target = random.normal(size=(1, 4, 16)).astype(np.float32)
  pred = random.normal(size=(1, 4, 16)).astype(np.float32)
  mask = (random.uniform(size=(1, 4, 16)) < 0.6).astype(np.float32)
  mask[0, 1] = 1  # a patch without visible pixels
  paint = functools.partial(
    reconstruction.to_pixels, pred, mask=mask, grid=(2, 2), normalized=True
  )
  found = paint(target)
  other = np.where(mask > 0, random.normal(size=target.shape), target)
  np.testing.assert_array_equal(found, paint(other.astype(np.float32)))
  seen = target[0, 0][mask[0, 0] == 0]
  np.testing.assert_allclose(
    found[0, 0], pred[0, 0] * seen.std(ddof=1) + seen.mean(), rtol=1e-4
  )
  assert np.isfinite(found).all()
