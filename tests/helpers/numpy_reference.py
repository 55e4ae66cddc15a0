"""The paper's formulas in NumPy loops, without any code of mae_jax."""

from __future__ import annotations

import math

import numpy as np


def position_table(grid: tuple[int, int], width: int) -> np.ndarray:
  """Computes positions [rows * columns, width]: column first, then row."""
  rows, columns = grid
  quarter = width // 4
  table = np.zeros((rows * columns, width))
  for y in range(rows):
    for x in range(columns):
      for i in range(quarter):
        omega = 10000 ** (-i / quarter)
        row = table[y * columns + x]
        row[i] = math.sin(x * omega)
        row[quarter + i] = math.cos(x * omega)
        row[2 * quarter + i] = math.sin(y * omega)
        row[3 * quarter + i] = math.cos(y * omega)
  return table


def patchify(images: np.ndarray, patch: tuple[int, int]) -> np.ndarray:
  """Splits [B, H, W, C] into [B, L, p q C], pixel by pixel."""
  batch, height, width, channels = images.shape
  p, q = patch
  rows, columns = height // p, width // q
  out = np.zeros((batch, rows * columns, p * q * channels), images.dtype)
  for b in range(batch):
    for y in range(height):
      for x in range(width):
        for c in range(channels):
          number = (y // p) * columns + x // q
          place = ((y % p) * q + x % q) * channels + c
          out[b, number, place] = images[b, y, x, c]
  return out


def normalize(patches: np.ndarray) -> np.ndarray:
  """Normalizes patches (norm_pix) with the unbiased variance."""
  out = np.zeros(patches.shape)
  for index in np.ndindex(patches.shape[:-1]):
    values = patches[index].astype(np.float64)
    mean = sum(values) / len(values)
    variance = sum((values - mean) ** 2) / (len(values) - 1)
    out[index] = (values - mean) / math.sqrt(variance + 1e-6)
  return out


def masked_mse(pred: np.ndarray, target: np.ndarray, mask: np.ndarray) -> float:
  """Averages over masked patches the mean over a patch's values."""
  errors = [
    np.mean((pred[index].astype(np.float64) - target[index]) ** 2)
    for index in np.ndindex(mask.shape)
    if mask[index] == 1
  ]
  return float(np.mean(errors))


def learning_rate(
  step: int, *, peak: float, low: float, warmup: int, total: int
) -> float:
  """Computes a linear warmup from 0, then half a cosine to `low`."""
  if step < warmup:
    return peak * step / warmup
  progress = (step - warmup) / (total - warmup)
  return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * progress))
