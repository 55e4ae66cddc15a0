"""The position table equals one written in loops; columns come first."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mae_jax.models import pos_embed
from tests.helpers import numpy_reference


@pytest.mark.parametrize("grid", [(4, 4), (3, 7), (7, 3), (1, 5), (14, 14)])
@pytest.mark.parametrize("width", [4, 12, 64])
def test_table_equals_a_loop(grid: tuple[int, int], width: int):
  table = pos_embed.sincos_2d(grid, width)
  assert table.dtype == np.float32
  assert table.shape == (grid[0] * grid[1], width)
  wanted = numpy_reference.position_table(grid, width)
  np.testing.assert_allclose(table, wanted, rtol=0, atol=1e-7)


def test_first_half_is_the_column_and_second_the_row():
  table = pos_embed.sincos_2d((3, 5), 16).reshape(3, 5, 16)
  for row in range(3):
    np.testing.assert_array_equal(table[row, :, :8], table[0, :, :8])
  for column in range(5):
    np.testing.assert_array_equal(table[:, column, 8:], table[:, 0, 8:])
  assert len(np.unique(table[0, :, :8], axis=0)) == 5
  assert len(np.unique(table[:, 0, 8:], axis=0)) == 3


def test_width_must_be_a_multiple_of_four():
  text = "width=30 is not a multiple of 4.*nearest are 28 and 32"
  with pytest.raises(ValueError, match=text):
    pos_embed.sincos_2d((2, 2), 30)


@pytest.mark.parametrize(
  ("grid", "to"),
  [
    ((14, 14), (28, 28)),
    ((14, 14), (7, 9)),
    ((3, 5), (8, 4)),
    ((1, 2), (3, 3)),
  ],
)
def test_resize_equals_pytorch(grid: tuple[int, int], to: tuple[int, int]):
  random = np.random.default_rng(0)
  table = random.normal(size=(grid[0] * grid[1], 8)).astype(np.float32)
  pixels = torch.from_numpy(table.reshape(1, *grid, 8).transpose(0, 3, 1, 2))
  wanted = torch.nn.functional.interpolate(
    pixels, size=to, mode="bicubic", align_corners=False
  )
  wanted = wanted.numpy().transpose(0, 2, 3, 1).reshape(-1, 8)
  resized = pos_embed.resize(table, grid, to)
  assert resized.dtype == np.float32
  difference = np.abs(resized - wanted).max()
  print(f"largest difference, {grid} -> {to}: {difference:.1e}")
  assert difference <= 2e-5


def test_resize_to_the_same_grid_changes_no_bit():
  table = np.random.default_rng(1).normal(size=(2, 12, 4)).astype(np.float32)
  np.testing.assert_array_equal(pos_embed.resize(table, (3, 4), (3, 4)), table)
