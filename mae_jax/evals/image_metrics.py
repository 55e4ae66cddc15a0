"""Metrics of reconstructed images, and training-free baselines."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

_WINDOW = 7  # SSIM's window in pixels


class Score(NamedTuple):
  """The metrics of one image.

  Attributes:
    psnr: dB over all pixels; infinite if the images are equal.
    psnr_masked: dB over the masked pixels.
    ssim: mean structural similarity (Wang et al. 2004); NaN for images less
      than three pixels wide.
    ssim_masked: the mean over windows whose middle is masked; NaN if no whole
      window is.
  """

  psnr: float
  psnr_masked: float
  ssim: float
  ssim_masked: float


def score(picture: np.ndarray, truth: np.ndarray, masked: np.ndarray) -> Score:
  """Compares a reconstruction with the original.

  Args:
    picture: uint8 [H, W, C].
    truth: uint8 [H, W, C], the original.
    masked: bool [H, W], the pixels that were reconstructed; at least one.
  """
  window = min(_WINDOW, *(side - 1 + side % 2 for side in truth.shape[:2]))
  ssim = structural_similarity(picture, truth, window)
  edge = window // 2
  middles = ssim[masked[edge : edge + len(ssim), edge : edge + ssim.shape[1]]]
  return Score(
    psnr(picture, truth),
    psnr(picture[masked], truth[masked]),
    float(ssim.mean()) if ssim.size else float("nan"),
    float(middles.mean()) if middles.size else float("nan"),
  )


def structural_similarity(
  picture: np.ndarray, truth: np.ndarray, window: int
) -> np.ndarray:
  """Computes the SSIM of windows of uint8 [H, W, C] (Wang et al. 2004, eq. 13).

  The window is a square of `window` pixels with equal weights and sample
  covariances, and edges count where it fits whole: scikit-image's defaults.

  Returns:
    float64 [h, w, C] of the pixels around which the window fits; empty if the
    window is below 3 pixels.
  """
  if window < 3:
    return np.zeros((0, 0, truth.shape[-1]))

  def mean(values: np.ndarray) -> np.ndarray:
    return ndimage.uniform_filter(values, (window, window, 1))

  x, y = picture.astype(np.float64), truth.astype(np.float64)
  x_mean, y_mean = mean(x), mean(y)
  unbiased = window**2 / (window**2 - 1)
  x_var = unbiased * (mean(x * x) - x_mean**2)
  y_var = unbiased * (mean(y * y) - y_mean**2)
  covariance = unbiased * (mean(x * y) - x_mean * y_mean)
  c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
  ssim = (2 * x_mean * y_mean + c1) * (2 * covariance + c2)
  ssim /= (x_mean**2 + y_mean**2 + c1) * (x_var + y_var + c2)
  edge = window // 2
  inner: np.ndarray = ssim[
    edge : ssim.shape[0] - edge, edge : ssim.shape[1] - edge
  ]
  return inner


def psnr(picture: np.ndarray, truth: np.ndarray) -> float:
  """Computes the PSNR in dB of uint8 arrays; infinite if they are equal."""
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
  from skimage import restoration

  blank = np.where(masked[..., None], 0, image)
  filled = restoration.inpaint_biharmonic(blank, masked, channel_axis=-1)
  painted = np.round(255 * np.clip(filled, 0, 1)).astype(np.uint8)
  return np.where(masked[..., None], painted, image)


# Methods without training.
BASELINES = {"mean color": mean_color, "biharmonic": biharmonic}
