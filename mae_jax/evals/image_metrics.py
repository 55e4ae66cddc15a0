"""How near a picture comes to the truth, and what plain methods reach.

https://scikit-image.org/docs/stable/api/skimage.metrics.html
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from skimage import metrics, restoration

_WINDOW = 7  # pixels, of SSIM


class Score(NamedTuple):
  """Of one picture.

  Attributes:
    psnr: dB over all pixels; infinite if they are equal.
    psnr_hidden: dB over the hidden ones.
    ssim: the mean structural similarity (Wang et al. 2004), NaN for pictures
      less than three pixels wide.
  """

  psnr: float
  psnr_hidden: float
  ssim: float


def score(picture: np.ndarray, truth: np.ndarray, hidden: np.ndarray) -> Score:
  """Compares a picture with the truth.

  Args:
    picture: uint8 [H, W, C].
    truth: likewise.
    hidden: bool [H, W], what the picture had to guess.
  """
  window = min(_WINDOW, *(side - 1 + side % 2 for side in truth.shape[:2]))
  ssim = float("nan")
  if window >= 3:
    ssim = metrics.structural_similarity(
      truth, picture, win_size=window, channel_axis=-1, data_range=255
    )
  return Score(
    _psnr(picture, truth), _psnr(picture[hidden], truth[hidden]), float(ssim)
  )


def _psnr(picture: np.ndarray, truth: np.ndarray) -> float:
  error = np.square(picture.astype(np.float64) - truth).mean()
  return float(10 * np.log10(255**2 / error)) if error else float("inf")


def mean_color(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
  """uint8 [H, W, C] with the mean of what is visible where it is hidden."""
  filled = image.copy()
  filled[hidden] = np.round(image[~hidden].mean(axis=0))
  return filled


def biharmonic(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
  """The same with the smoothest surface through what is visible.

  Damelin and Hoang 2018, as scikit-image has it.
  """
  blank = np.where(hidden[..., None], 0, image)
  filled = restoration.inpaint_biharmonic(blank, hidden, channel_axis=-1)
  painted = np.round(255 * np.clip(filled, 0, 1)).astype(np.uint8)
  return np.where(hidden[..., None], painted, image)


# What needs no training, by name.
BASELINES = {"mean color": mean_color, "biharmonic": biharmonic}
