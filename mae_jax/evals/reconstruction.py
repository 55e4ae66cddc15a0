"""Pictures: original | masked | reconstruction | with visible patches pasted.

A model trained on normalized patches does not predict brightness and contrast.
Both are estimated from the surrounding visible patches, never from the masked
ones, which would show more than the model can know.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.config import lookup
from mae_jax.models import losses, patchify
from mae_jax.utils import image_grid

TITLES = ("original", "masked", "reconstruction", "visible pasted in")
# Source of mean and deviation for patches that were predicted normalized: the
# surrounding visible patches, the true masked patch, or none.
STATISTICS = ("visible", "true", "raw")


class Reconstructed(NamedTuple):
  """A model's reconstruction of masked images.

  Attributes:
    reconstruction: uint8 [B, H, W, C], all patches as predicted.
    hidden: bool [B, H, W], the masked pixels.
  """

  reconstruction: np.ndarray
  hidden: np.ndarray

  def masked(self, images: np.ndarray) -> np.ndarray:
    """Returns uint8 [B, H, W, C] with hatched masked pixels."""
    cells = map(image_grid.Cell, images, self.hidden)
    return np.stack([cell.draw() for cell in cells])

  def pasted(self, images: np.ndarray) -> np.ndarray:
    """Returns the images with the reconstruction in the masked pixels."""
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
  """Converts predicted patches to the scale of the target's pixels.

  Args:
    pred: [B, L, P] predictions.
    target: [B, L, P] true patches; only "true" statistics read masked ones.
    mask: [B, L], 1 = removed; or [B, L, P] for each value.
    grid: rows and columns of patches.
    normalized: whether predictions lack mean and deviation of their patches
      (target=norm_pix).
    statistics: a name in STATISTICS, for normalized predictions. "visible"
      gives each patch the mean and deviation of visible patches, weighted by
      inverse squared distance. "true" takes the patch's own, which a model
      cannot know; "raw" takes none.

  Returns:
    [B, L, P].
  """
  lookup(dict.fromkeys(STATISTICS), statistics, "--statistics")
  if not normalized or statistics == "raw":
    return pred
  if mask.ndim == 3 and statistics != "true":
    mean, std = _visible_statistics(target, 1 - mask)
    # Patches with fewer than two visible pixels use their neighbors.
    mask = ((1 - mask).sum(axis=-1) < 2).astype(np.float32)
  else:
    moments = losses.patch_statistics(jnp.asarray(target))
    mean, std = (np.asarray(each) for each in moments)
  if statistics == "true":
    return pred * std + mean
  return with_visible_statistics(pred, mean, std, mask, grid)


def with_visible_statistics[Array: (np.ndarray, jax.Array)](
  pred: Array,
  mean: Array,
  std: Array,
  mask: Array,
  grid: tuple[int, int],
) -> Array:
  """Gives each patch mean and deviation of visible patches; see `to_pixels`.

  Args:
    pred: [B, L, P] predictions.
    mean: [B, L, 1] means of the patches; only those of visible ones are read.
    std: [B, L, 1] their deviations.
    mask: [B, L], 1 = removed. If all are, mean and deviation are 0.
    grid: rows and columns of patches.
  """
  rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
  square = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
  # The small constant makes a visible patch use its own statistics.
  weights = (1 - mask)[:, None, :] / (square + 1e-6)  # [B, L, L]
  weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-30)
  return pred * (weights @ std) + weights @ mean


def _visible_statistics(
  target: np.ndarray, visible: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Computes mean and deviation [B, L, 1] of each patch's visible values."""
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
  """Converts predictions to images.

  Args:
    images: [B, H, W, C] uint8.
    pred: [B, L, P] predicted patches.
    mask: [B, L], 1 = removed; or [B, L, P] for each value.
    patch_size: height and width of a patch.
    mean: mean per channel, as in the model's input.
    std: standard deviation per channel, as in the model's input.
    normalized: as in `to_pixels`.
    statistics: as in `to_pixels`.
  """
  size = images.shape[1], images.shape[2]
  grid = patchify.grid_size(size, patch_size)
  mean_, std_ = np.asarray(mean), np.asarray(std)
  scaled = (images / 255 - mean_) / std_
  target = np.asarray(patchify.patchify(scaled, patch_size))
  pixels = to_pixels(
    pred, target, mask, grid, normalized=normalized, statistics=statistics
  )
  cover = np.broadcast_to(mask.reshape(*mask.shape[:2], -1), target.shape)
  pixels, cover = (
    np.asarray(patchify.unpatchify(jnp.asarray(each), patch_size, size))
    for each in (pixels, cover)
  )
  pixels = np.clip(pixels * std_ + mean_, 0, 1)
  return Reconstructed(
    np.round(pixels * 255).astype(np.uint8), cover.max(axis=-1) > 0
  )


def sheet(images: np.ndarray, painted: Reconstructed) -> np.ndarray:
  """Lays out one row per image as [H', W', 3] uint8, with TITLES above."""
  rows = [
    (
      image,
      image_grid.Cell(image, hatched=hidden),
      image_grid.Cell(predicted, blank=~hidden),
      pasted,
    )
    for image, hidden, predicted, pasted in zip(
      images,
      painted.hidden,
      painted.reconstruction,
      painted.pasted(images),
      strict=True,
    )
  ]
  return image_grid.draw_grid(rows, TITLES)
