"""Adapts pre-trained weights to another patch size or number of channels.

Positions need no change: they are computed from the grid. The two kernels that
touch pixels change. The new embedding of a resized patch, or of one with equal
channels, equals the old embedding where that is possible. The prediction is
resized as an image.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Patch(NamedTuple):
  """The dimensions of a patch.

  Attributes:
    height: in pixels.
    width: in pixels.
    channels: per pixel.
  """

  height: int
  width: int
  channels: int


def embedding(kernel: np.ndarray, old: Patch, new: Patch) -> np.ndarray:
  """Adapts the kernel of the patch embedding.

  Uses the pseudo-inverse of resizing (Beyer et al. 2023, arXiv 2212.08013,
  section 3.4), and the mean over channels if their number changes.

  Args:
    kernel: [P, D].
    old: the kernel's patches.
    new: the result's patches.

  Returns:
    [P', D] float32.
  """
  by_pixel = kernel.reshape(old.height, old.width, old.channels, -1)
  by_pixel = (
    _change_channels(by_pixel, 2, new.channels) * old.channels / new.channels
  )
  rows, columns = (
    np.linalg.pinv(_resize_matrix(a, b)) for a, b in _sides(old, new)
  )
  resized = np.einsum("ha,wb,hwcd->abcd", rows, columns, by_pixel)
  return resized.reshape(-1, kernel.shape[-1]).astype(np.float32)


def prediction(values: np.ndarray, old: Patch, new: Patch) -> np.ndarray:
  """Adapts a kernel [D, P] or bias [P] that predicts pixels.

  Resizes patches bilinearly. If the number of channels changes, each new
  channel is the mean of the old ones.

  Args:
    values: [D, P] or [P].
    old: the patches of `values`.
    new: the result's patches.

  Returns:
    [D, P'] or [P'] float32.
  """
  by_pixel = values.reshape(-1, old.height, old.width, old.channels)
  by_pixel = _change_channels(by_pixel, 3, new.channels)
  rows, columns = (_resize_matrix(a, b) for a, b in _sides(old, new))
  resized = np.einsum("ah,bw,dhwc->dabc", rows, columns, by_pixel)
  return resized.reshape(*values.shape[:-1], -1).astype(np.float32)


def _change_channels(x: np.ndarray, axis: int, count: int) -> np.ndarray:
  if x.shape[axis] == count:
    return x
  return np.repeat(x.mean(axis=axis, keepdims=True), count, axis)


def _sides(old: Patch, new: Patch) -> tuple[tuple[int, int], tuple[int, int]]:
  return (old.height, new.height), (old.width, new.width)


@functools.cache
def _resize_matrix(before: int, after: int) -> Any:
  """Returns the matrix [after, before] of bilinear resizing."""
  matrix = jax.image.resize(
    jnp.eye(before), (after, before), "bilinear", antialias=True
  )
  return np.asarray(matrix, np.float64)
