"""Features of a whole stream of images, gathered on every host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mae_jax import sharding


def extract(
  apply: Callable[[Any, Mapping[str, jax.Array]], Any],
  params: Any,
  batches: Iterable[Mapping[str, np.ndarray]],
  *,
  mesh: Mesh,
  batch_size: int,
) -> tuple[Any, np.ndarray, int]:
  """Runs `apply(params, batch)` over an evaluation stream.

  Args:
    apply: a jitted function whose outputs, a tree of [B, ...], are replicated,
      so that every process can read them.
    params: its first argument.
    batches: of "image", "label", "mask" (0 = padding, or cannot be read) and
      "readable" (False for the latter), this process's rows.
    mesh: the devices.
    batch_size: B, over all processes.

  Returns:
    The tree with all real examples in a row, [N, ...], their labels [N], and
    how many could not be read.
  """
  gather = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))
  outputs, labels, unreadable = [], [], 0
  for batch in sharding.prefetch(mesh, batches, batch_size, ahead=1):
    out = apply(params, batch)
    label, mask, readable = jax.device_get(
      gather((batch["label"], batch["mask"], batch["readable"]))
    )
    unreadable += int((~readable).sum())
    real = mask > 0
    outputs.append(jax.tree.map(lambda x, real=real: np.asarray(x)[real], out))
    labels.append(label[real])
  joined = jax.tree.map(lambda *x: np.concatenate(x), *outputs)
  return joined, np.concatenate(labels), unreadable
