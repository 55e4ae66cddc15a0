"""Fits a target on training images before the first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mae_jax.config import Config
from mae_jax.distributed import sharding
from mae_jax.models import patchify, targets
from mae_jax.utils import console

IMAGES = 8192  # used for the fit, rounded up to whole batches


def fit(
  config: Config,
  mesh: Mesh,
  target: targets.Fitted,
  patch_size: tuple[int, int],
  batches: Iterator[Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
  """Fits a target on the first IMAGES of a stream.

  Statistics are summed over all processes, in float32 within a batch and in
  float64 over batches.

  Args:
    config: settings of the run.
    mesh: the devices.
    target: the target to fit.
    patch_size: height and width of a patch in pixels.
    batches: this process's rows of global batches.

  Returns:
    The result of `target.fit`, the same on all processes.
  """
  data, count = config.data, -(-IMAGES // config.data.batch_size)
  if jax.process_index() == 0:
    console.info(
      f"fitting objective.target={config.objective.target!r} on "
      f"{count * data.batch_size} images"
    )

  def batch_statistics(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    x = patchify.normalize(batch["image"], data.mean, data.std)
    return target.statistics(
      patchify.patchify(x, patch_size), batch["readable"]
    )

  sums = jax.jit(batch_statistics, out_shardings=sharding.replicated(mesh))
  total: Any = None
  ahead = sharding.prefetch(mesh, batches, data.batch_size, data.prefetch)
  for _, batch in zip(range(count), ahead, strict=False):
    found = jax.tree.map(lambda x: np.asarray(x, np.float64), sums(batch))
    total = found if total is None else jax.tree.map(np.add, total, found)
  # Hosts may round differently.
  return multihost_utils.broadcast_one_to_all(target.fit(total))
