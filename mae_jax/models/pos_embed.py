"""Position tables: fixed 2-D sin-cos, and resizing a table to another grid."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def sincos_1d(positions: np.ndarray, width: int) -> np.ndarray:
  """Encodes positions [N] as [sin | cos] [N, width].

  The frequencies are omega_i = 10000^(-2i / width).
  """
  omega = 1.0 / 10000 ** (np.arange(width // 2) / (width / 2))
  angles = positions.reshape(-1, 1).astype(np.float64) * omega
  return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_2d(grid: tuple[int, int], width: int) -> np.ndarray:
  """Computes the reference's position table.

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


def with_cls(table: Any) -> jax.Array:
  """Prepends the class token's row of zeros: [L, D] -> [1, 1 + L, D]."""
  return jnp.pad(table, ((1, 0), (0, 0)))[None]


def resize(
  table: np.ndarray, grid: tuple[int, int], to: tuple[int, int]
) -> np.ndarray:
  """Interpolates a table of patch positions, as the reference does.

  Bicubic with a = -0.75, edges clamped, no antialiasing, corners not aligned:
  PyTorch's `interpolate(mode="bicubic")`. JAX's bicubic has a = -0.5.

  Args:
    table: [..., rows * columns, D] without the class token.
    grid: rows and columns of the table.
    to: rows and columns of the result.

  Returns:
    [..., to_rows * to_columns, D] float32; unchanged for the same grid.
  """
  if tuple(grid) == tuple(to):
    return np.asarray(table, np.float32)
  *leading, _, width = table.shape
  cells = np.asarray(table, np.float64).reshape(*leading, *grid, width)
  rows, columns = (_bicubic_matrix(a, b) for a, b in zip(grid, to, strict=True))
  result = np.einsum("yr,xc,...rcd->...yxd", rows, columns, cells)
  return result.reshape(*leading, -1, width).astype(np.float32)


def table_of(
  params: Any, grid: tuple[int, int], to: tuple[int, int]
) -> np.ndarray:
  """Returns the positions of an encoder or decoder for another grid.

  Args:
    params: its parameters; without "pos_embed" its table is the sin-cos one.
    grid: rows and columns of its patches.
    to: rows and columns of the result.

  Returns:
    [1, 1 + to_rows * to_columns, D] float32; the class token has row 0.
  """
  table = params.get("pos_embed")
  if table is None:
    token = params.get("cls_token", params.get("mask_token"))
    table = with_cls(sincos_2d(grid, token.shape[-1]))
  table = np.asarray(jax.device_get(table))
  resized = resize(table[:, 1:], grid, to)
  return np.concatenate([table[:, :1], resized], axis=1)


def _bicubic_matrix(size: int, to: int) -> np.ndarray:
  """Returns the interpolation weights [to, size]."""
  a = -0.75
  places = (np.arange(to) + 0.5) * size / to - 0.5
  first = np.floor(places).astype(int)
  weights = np.zeros((to, size))
  for offset in (-1, 0, 1, 2):
    x = np.abs(places - (first + offset))
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    source = np.clip(first + offset, 0, size - 1)
    np.add.at(weights, (np.arange(to), source), np.where(x <= 1, near, far))
  return weights
