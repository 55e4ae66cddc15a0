"""Metrics of reconstructed images, and training-free baselines.

https://scikit-image.org/docs/stable/api/skimage.metrics.html
"""

from typing import NamedTuple

import numpy as np
from skimage import metrics, restoration

_WINDOW = 7  # SSIM's window in pixels


class Score(NamedTuple):
  """The metrics of one image.

  Attributes:
    psnr: dB over all pixels; infinite if the images are equal.
    psnr_hidden: dB over the masked pixels.
    ssim: mean structural similarity (Wang et al. 2004); NaN for images less
      than three pixels wide.
  """

  psnr: float
  psnr_hidden: float
  ssim: float


def score(picture: np.ndarray, truth: np.ndarray, masked: np.ndarray) -> Score:
  """Compares a reconstruction with the original.

  Args:
    picture: uint8 [H, W, C].
    truth: uint8 [H, W, C], the original.
    masked: bool [H, W], the pixels that were reconstructed; at least one.
  """
  window = min(_WINDOW, *(side - 1 + side % 2 for side in truth.shape[:2]))
  ssim = float("nan")
  if window >= 3:
    ssim = metrics.structural_similarity(
      truth, picture, win_size=window, channel_axis=-1, data_range=255
    )
  return Score(
    _psnr(picture, truth), _psnr(picture[masked], truth[masked]), float(ssim)
  )


def _psnr(picture: np.ndarray, truth: np.ndarray) -> float:
  error = np.square(picture.astype(np.float64) - truth).mean()
  return float(10 * np.log10(255**2 / error)) if error else float("inf")


def mean_color(image: np.ndarray, masked: np.ndarray) -> np.ndarray:
  """Fills the masked pixels of uint8 [H, W, C] with the visible mean."""
  filled = image.copy()
  filled[masked] = np.round(image[~masked].mean(axis=0))
  return filled


def biharmonic(image: np.ndarray, masked: np.ndarray) -> np.ndarray:
  """Fills the masked pixels with the smoothest surface through the others.

  Damelin and Hoang 2018, in scikit-image's implementation.
  """
  blank = np.where(masked[..., None], 0, image)
  filled = restoration.inpaint_biharmonic(blank, masked, channel_axis=-1)
  painted = np.round(255 * np.clip(filled, 0, 1)).astype(np.uint8)
  return np.where(masked[..., None], painted, image)


# Methods without training.
BASELINES = {"mean color": mean_color, "biharmonic": biharmonic}
