"""Pictures: original | masked | reconstruction | with visible patches pasted.

A model trained on normalised patches predicts no brightness and no contrast.
They are then estimated from the visible patches around, never taken from the
hidden ones: such a picture would show what the model was not able to know.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mae_jax import losses
from mae_jax.models import patches

TITLES = ("original", "masked", "reconstruction", "visible pasted in")
_GREY = 0.5  # of the hidden patches, in [0, 1]
_GAP = 4  # pixels between cells
_HEADER = 18  # pixels for the titles


def to_pixels(
  pred: np.ndarray,
  target: np.ndarray,
  mask: np.ndarray,
  grid: tuple[int, int],
  *,
  normalized: bool,
) -> np.ndarray:
  """Predicted patches in the scale of the target's pixels.

  Args:
    pred: [B, L, P] what the decoder gave.
    target: [B, L, P] true patches; only visible ones are read.
    mask: [B, L], 1 = removed.
    grid: rows and columns of patches.
    normalized: whether the model was trained with `norm_pix_loss`. If so, each
      patch gets the mean and deviation of the visible patches, weighted by
      the inverse square of their distance.

  Returns:
    [B, L, P].
  """
  if not normalized:
    return pred
  rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
  square = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
  # A small addend makes a visible patch stand for itself.
  weights = (1 - mask)[:, None, :] / (square + 1e-6)  # [B, L, L]
  weights = weights / weights.sum(axis=-1, keepdims=True)
  statistics = losses.patch_statistics(jnp.asarray(target))
  mean, std = (np.asarray(each) for each in statistics)
  return pred * (weights @ std) + weights @ mean


def panels(
  images: np.ndarray,
  pred: np.ndarray,
  mask: np.ndarray,
  *,
  patch_size: tuple[int, int],
  mean: tuple[float, ...],
  std: tuple[float, ...],
  normalized: bool,
) -> np.ndarray:
  """The four pictures of every image.

  Args:
    images: [B, H, W, C] uint8.
    pred: [B, L, P] predicted patches.
    mask: [B, L], 1 = removed.
    patch_size: height and width of a patch.
    mean: per channel, as the model's input was normalised.
    std: likewise.
    normalized: see `to_pixels`.

  Returns:
    [B, 4, H, W, C] uint8 in the order of TITLES. The visible patches of the
    last are those of the image, bit for bit.
  """
  size = images.shape[1], images.shape[2]
  grid = patches.grid_size(size, patch_size)
  mean_, std_ = np.asarray(mean), np.asarray(std)
  original = images / 255
  target = np.asarray(patches.patchify((original - mean_) / std_, patch_size))
  pixels = to_pixels(pred, target, mask, grid, normalized=normalized)
  pixels = _unpatchify(pixels, patch_size, size)
  pixels = np.clip(pixels * std_ + mean_, 0, 1)
  cover = np.broadcast_to(mask[:, :, None], target.shape)
  hidden = _unpatchify(cover, patch_size, size) > 0
  masked = np.where(hidden, _GREY, original)
  pasted = np.where(hidden, pixels, original)
  stacked = np.stack([original, masked, pixels, pasted], axis=1)
  return np.round(stacked * 255).astype(np.uint8)


def sheet(pictures: np.ndarray) -> np.ndarray:
  """Lays pictures out for a person: a row an image, titles above.

  Args:
    pictures: [B, 4, H, W, C] uint8 from `panels`; C other than 3 is shown as
      grey, the mean of the channels.

  Returns:
    [H', W', 3] uint8; small images are enlarged pixel by pixel.
  """
  if pictures.shape[-1] != 3:
    grey = pictures.mean(axis=-1, keepdims=True).round().astype(np.uint8)
    pictures = np.repeat(grey, 3, axis=-1)
  rows, columns, height, width, _ = pictures.shape
  scale = max(1, -(-112 // width))
  height, width = height * scale, width * scale
  canvas = Image.new(
    "RGB",
    (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _HEADER),
    "white",
  )
  draw = ImageDraw.Draw(canvas)
  font = ImageFont.load_default(size=12)
  for column, title in enumerate(TITLES):
    left = _GAP + column * (width + _GAP)
    draw.text((left, 2), title, fill="black", font=font)
    for row in range(rows):
      cell = Image.fromarray(pictures[row, column])
      cell = cell.resize((width, height), Image.Resampling.NEAREST)
      canvas.paste(cell, (left, _HEADER + row * (height + _GAP)))
  return np.asarray(canvas)


def _unpatchify(
  rows: np.ndarray, patch_size: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
  return np.asarray(patches.unpatchify(jnp.asarray(rows), patch_size, size))
