"""Fixed 2-D sin-cos position tables: constants, never parameters."""

from __future__ import annotations

import numpy as np


def sincos_1d(positions: np.ndarray, width: int) -> np.ndarray:
  """[N] positions -> [N, width]: [sin | cos], omega_i = 10000^(-2i / width)."""
  omega = 1.0 / 10000 ** (np.arange(width // 2) / (width / 2))
  angles = positions.reshape(-1, 1).astype(np.float64) * omega
  return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_2d(grid: tuple[int, int], width: int) -> np.ndarray:
  """The position table of the reference.

  Args:
    grid: rows and columns of patches.
    width: D, channels of a token, a multiple of 4.

  Returns:
    [rows * columns, D] float32. The first half of the channels encodes the
    column, the second half the row.

  Raises:
    ValueError: if D is not a multiple of 4.
  """
  if width % 4:
    raise ValueError(
      f"width={width} is not a multiple of 4, which sin-cos positions need; "
      f"the nearest are {width // 4 * 4} and {width // 4 * 4 + 4}"
    )
  rows, columns = np.meshgrid(*map(np.arange, grid), indexing="ij")
  halves = [sincos_1d(x, width // 2) for x in (columns, rows)]
  return np.concatenate(halves, axis=1).astype(np.float32)
