"""PSNR, SSIM and inpainting of images with known scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage
from skimage import metrics

from mae_jax.evals import image_metrics


def draw(size=(32, 40), channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
  random = np.random.default_rng(0)
  image = random.integers(0, 200, (*size, channels), np.uint8)
  hidden = random.random(size) < 0.5
  return image, hidden


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_same_picture(channels: int):
  image, hidden = draw(channels=channels)
  found = image_metrics.score(image, image, hidden)
  assert found == (math.inf, math.inf, 1.0, 1.0)


def test_a_known_error():
  image, hidden = draw()
  picture = image.copy()
  picture[hidden] += 5
  found = image_metrics.score(picture, image, hidden)
  assert found.psnr_masked == pytest.approx(20 * math.log10(255 / 5))
  share = 10 * math.log10(1 / hidden.mean())
  assert found.psnr == pytest.approx(found.psnr_masked + share)
  assert 0.9 < found.ssim < 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("window", [3, 7])
def test_ssim_is_scikit_images(channels: int, window: int):
  image, hidden = draw(channels=channels)
  image = ndimage.gaussian_filter(image, (2, 2, 0))
  picture = np.where(hidden[..., None], image // 2, image)
  mean, whole = metrics.structural_similarity(
    image,
    picture,
    win_size=window,
    channel_axis=-1,
    data_range=255,
    full=True,
  )
  found = image_metrics.structural_similarity(picture, image, window)
  assert found.mean() == pytest.approx(mean, abs=1e-12)
  if window == 7:
    score = image_metrics.score(picture, image, hidden)
    inner = np.zeros_like(hidden)
    inner[3:-3, 3:-3] = hidden[3:-3, 3:-3]
    assert score.ssim == pytest.approx(mean, abs=1e-12)
    assert score.ssim_masked == pytest.approx(whole[inner].mean(), abs=1e-12)


@pytest.mark.parametrize("size", [(1, 9), (3, 3), (6, 9), (8, 8)])
def test_small_pictures(size):
  image, _ = draw(size)
  hidden = np.zeros(size, bool)
  hidden[0, 0] = True
  found = image_metrics.score(255 - image, image, hidden)
  assert math.isnan(found.ssim) == (min(size) < 3)
  assert math.isfinite(found.psnr)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", image_metrics.BASELINES)
def test_baselines_see_only_what_is_visible(name: str, channels: int):
  image, hidden = draw((12, 16), channels)
  paint = image_metrics.BASELINES[name]
  filled = paint(image, hidden)
  assert filled.dtype == np.uint8
  np.testing.assert_array_equal(filled[~hidden], image[~hidden])
  changed = np.where(hidden[..., None], 255 - image, image)
  np.testing.assert_array_equal(paint(changed, hidden), filled)


def test_the_mean_color():
  image, hidden = draw()
  filled = image_metrics.mean_color(image, hidden)
  wanted = image[~hidden].mean(axis=0)
  assert np.abs(filled[hidden] - wanted).max() <= 0.5


def test_biharmonic_goes_on_with_a_slope():
  """The mean color is far off there."""
  slope = np.arange(20, 180, 8, dtype=np.uint8)
  image = np.broadcast_to(slope[None, :, None], (12, 20, 1))
  hidden = np.zeros((12, 20), bool)
  hidden[4:8, 6:12] = True
  filled = image_metrics.biharmonic(image, hidden)
  assert np.abs(filled.astype(int) - image).max() <= 2
