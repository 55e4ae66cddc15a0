"""Patches of another size or number of channels, for a network that has others.

Positions need no change: they are computed from the grid. What is left are the
two kernels that touch pixels. The embedding is changed so that what it makes of
a patch stays the same where it can: of a patch that was resized, and of one
whose channels are all alike. The prediction is resized as an image.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Patch(NamedTuple):
  """What a patch is made of.

  Attributes:
    height: in pixels.
    width: in pixels.
    channels: of a pixel.
  """

  height: int
  width: int
  channels: int


def embedding(kernel: np.ndarray, old: Patch, new: Patch) -> np.ndarray:
  """The kernel of the patch embedding for other patches.

  The pseudo-inverse of resizing (Beyer et al. 2023, arXiv 2212.08013, section
  3.4), and of each pixel's channels the mean.

  Args:
    kernel: [P, D] of old patches.
    old: what these are.
    new: what is to be embedded.

  Returns:
    [P', D] float32.
  """
  by_pixel = kernel.reshape(old.height, old.width, old.channels, -1)
  by_pixel = _change_channels(by_pixel, 2, new.channels) * old.channels / new.channels
  rows, columns = (np.linalg.pinv(_resize_matrix(a, b)) for a, b in _sides(old, new))
  found = np.einsum("ha,wb,hwcd->abcd", rows, columns, by_pixel)
  return found.reshape(-1, kernel.shape[-1]).astype(np.float32)


def prediction(values: np.ndarray, old: Patch, new: Patch) -> np.ndarray:
  """A kernel [D, P] or bias [P] that predicts pixels, for other patches.

  Patches are resized bilinearly; each channel is the mean of the old ones, or
  stays if there are as many.

  Args:
    values: last axis as old patches.
    old: what these are.
    new: what is to be predicted.

  Returns:
    [D, P'] or [P'] float32.
  """
  by_pixel = values.reshape(-1, old.height, old.width, old.channels)
  by_pixel = _change_channels(by_pixel, 3, new.channels)
  rows, columns = (_resize_matrix(a, b) for a, b in _sides(old, new))
  found = np.einsum("ah,bw,dhwc->dabc", rows, columns, by_pixel)
  return found.reshape(*values.shape[:-1], -1).astype(np.float32)


def _change_channels(x: np.ndarray, axis: int, count: int) -> np.ndarray:
  if x.shape[axis] == count:
    return x
  return np.repeat(x.mean(axis=axis, keepdims=True), count, axis)


def _sides(old: Patch, new: Patch) -> tuple[tuple[int, int], tuple[int, int]]:
  return (old.height, new.height), (old.width, new.width)


@functools.cache
def _resize_matrix(before: int, after: int) -> Any:
  """[after, before]: what makes so many pixels of so many, bilinearly."""
  resized = jax.image.resize(
    jnp.eye(before), (after, before), "bilinear", antialias=True
  )
  return np.asarray(resized, np.float64)
