"""How near and how sharp held-out images are painted by a run's network."""

from __future__ import annotations

import pathlib

import jax
import numpy as np

from mae_jax import config as config_lib
from mae_jax import painter, sharding
from mae_jax.data import sources
from mae_jax.evals import features

PSNR, SHARPNESS = "PSNR, dB", "sharpness"
IMAGES = 64  # held out, that are painted


def measured(workdir: pathlib.Path) -> dict[str, float]:
  """PSNR and sharpness of hidden patches.

  The same random masks for all, of the share that the network was trained with.
  Sharpness is the mean absolute difference of neighbouring pixels of one hidden
  patch, and 1 for the images themselves; what blurs has less.
  """
  mesh = sharding.make_mesh(config_lib.Mesh(), jax.devices()[:1])
  network = painter.Painter(workdir, mesh)
  source = sources.open_source(network.data, "eval")
  assert source is not None
  arrays, _, _ = features.of_source(
    lambda _, batch: {"image": batch["image"]},
    {},
    source,
    network.data,
    mesh=mesh,
    batch_size=32,
    limit=IMAGES,
  )
  images = arrays["image"]
  hidden = network.masks("random", network.mask_ratio, len(images), seed=0)
  painted = network.paint(images, hidden)
  pasted = painted.pasted(images)
  error = (pasted[painted.hidden] / 255.0 - images[painted.hidden] / 255.0) ** 2
  return {
    PSNR: float(-10 * np.log10(error.mean())),
    SHARPNESS: edges(pasted, painted.hidden, network.patch_size)
    / edges(images, painted.hidden, network.patch_size),
  }


def edges(
  images: np.ndarray, where: np.ndarray, patch: tuple[int, int]
) -> float:
  """Mean absolute difference of neighbours in a patch, where both count.

  Between patches there may be seams, which are not sharpness.

  Args:
    images: [B, H, W, C].
    where: [B, H, W] bool.
    patch: height and width.
  """
  x = images.astype(np.float64)
  total, count = 0.0, 0
  for axis in (1, 2):
    both = np.logical_and(*_neighbours(where, axis))
    inside = np.arange(1, x.shape[axis]) % patch[axis - 1] > 0
    both &= inside[:, None] if axis == 1 else inside
    first, second = _neighbours(x, axis)
    total += np.abs(first - second)[both].sum()
    count += int(both.sum()) * x.shape[-1]
  return total / count


def _neighbours(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
  length = x.shape[axis]
  first = np.take(x, range(length - 1), axis)
  return first, np.take(x, range(1, length), axis)
