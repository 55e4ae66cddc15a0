"""Pictures: original | masked | reconstruction | with visible patches pasted.

A model trained on normalized patches predicts no brightness and no contrast.
They are then estimated from the visible patches around, never taken from the
hidden ones: such a picture would show what the model was not able to know.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from mae_jax.config import lookup
from mae_jax.models import losses, patchify
from mae_jax.utils import image_grid

TITLES = ("original", "masked", "reconstruction", "visible pasted in")
GRAY = 128  # of the hidden patches, of 255
# Where mean and deviation of a patch come from that was predicted normalized:
# the visible patches around, the hidden patch itself, or nowhere.
STATISTICS = ("visible", "true", "raw")


class Reconstructed(NamedTuple):
  """What a model made of the hidden patches of images.

  Attributes:
    reconstruction: uint8 [B, H, W, C], all patches as they were predicted.
    hidden: bool [B, H, W], the pixels that the model was not shown.
  """

  reconstruction: np.ndarray
  hidden: np.ndarray

  def masked(self, images: np.ndarray) -> np.ndarray:
    """uint8 [B, H, W, C] with gray where they are hidden."""
    return np.where(self.hidden[..., None], np.uint8(GRAY), images)

  def pasted(self, images: np.ndarray) -> np.ndarray:
    """The images, bit for bit, and the reconstruction where they are hidden."""
    return np.where(self.hidden[..., None], self.reconstruction, images)


def to_pixels(
  pred: np.ndarray,
  target: np.ndarray,
  mask: np.ndarray,
  grid: tuple[int, int],
  *,
  normalized: bool,
  statistics: str = "visible",
) -> np.ndarray:
  """Predicted patches in the scale of the target's pixels.

  Args:
    pred: [B, L, P] what the decoder gave.
    target: [B, L, P] true patches; but for "true" statistics only visible ones
      are read.
    mask: [B, L], 1 = removed; or of each value [B, L, P].
    grid: rows and columns of patches.
    normalized: whether predictions lack mean and deviation of their patches
      (target=norm_pix).
    statistics: if so, a name in STATISTICS. Each patch gets the mean and
      deviation of the visible patches, weighted by the inverse square of their
      distance; or its own, which a model cannot know ("true"); or none ("raw").

  Returns:
    [B, L, P].
  """
  lookup(dict.fromkeys(STATISTICS), statistics, "--statistics")
  if not normalized or statistics == "raw":
    return pred
  if mask.ndim == 3 and statistics != "true":
    mean, std = _visible_statistics(target, 1 - mask)
    # Where too little of a patch is visible, those around tell more.
    mask = ((1 - mask).sum(axis=-1) < 2).astype(np.float32)
  else:
    moments = losses.patch_statistics(jnp.asarray(target))
    mean, std = (np.asarray(each) for each in moments)
  if statistics == "true":
    return pred * std + mean
  rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
  square = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
  # A small addend makes a visible patch stand for itself.
  weights = (1 - mask)[:, None, :] / (square + 1e-6)  # [B, L, L]
  weights = weights / weights.sum(axis=-1, keepdims=True)
  return pred * (weights @ std) + weights @ mean


def _visible_statistics(
  target: np.ndarray, visible: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Mean and deviation [B, L, 1] of what is visible of each patch."""
  count = visible.sum(axis=-1, keepdims=True)
  mean = (target * visible).sum(axis=-1, keepdims=True) / np.maximum(count, 1)
  square = ((target - mean) ** 2 * visible).sum(axis=-1, keepdims=True)
  return mean, np.sqrt(square / np.maximum(count - 1, 1) + losses.NORM_PIX_EPS)


def to_images(
  images: np.ndarray,
  pred: np.ndarray,
  mask: np.ndarray,
  *,
  patch_size: tuple[int, int],
  mean: tuple[float, ...],
  std: tuple[float, ...],
  normalized: bool,
  statistics: str = "visible",
) -> Reconstructed:
  """Predictions as pictures.

  Args:
    images: [B, H, W, C] uint8.
    pred: [B, L, P] predicted patches.
    mask: [B, L], 1 = removed; or of each value [B, L, P].
    patch_size: height and width of a patch.
    mean: per channel, as the model's input was normalized.
    std: likewise.
    normalized: see `to_pixels`.
    statistics: see `to_pixels`.
  """
  size = images.shape[1], images.shape[2]
  grid = patchify.grid_size(size, patch_size)
  mean_, std_ = np.asarray(mean), np.asarray(std)
  scaled = (images / 255 - mean_) / std_
  target = np.asarray(patchify.patchify(scaled, patch_size))
  pixels = to_pixels(
    pred, target, mask, grid, normalized=normalized, statistics=statistics
  )
  pixels = np.asarray(
    patchify.unpatchify(jnp.asarray(pixels), patch_size, size)
  )
  pixels = np.clip(pixels * std_ + mean_, 0, 1)
  cover = np.broadcast_to(mask.reshape(*mask.shape[:2], -1), target.shape)
  cover = np.asarray(patchify.unpatchify(jnp.asarray(cover), patch_size, size))
  return Reconstructed(
    np.round(pixels * 255).astype(np.uint8), cover.max(axis=-1) > 0
  )


def sheet(images: np.ndarray, painted: Reconstructed) -> np.ndarray:
  """Lays out a row an image, with TITLES above.

  Args:
    images: [B, H, W, C] uint8.
    painted: of them.

  Returns:
    [H', W', 3] uint8.
  """
  columns = (
    images,
    painted.masked(images),
    painted.reconstruction,
    painted.pasted(images),
  )
  return image_grid.draw_grid(list(zip(*columns, strict=True)), TITLES)
