"""Extracts features of images, gathered on every host."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mae_jax.config import DataConfig
from mae_jax.data import pipeline, sources
from mae_jax.data.bad_images import BadImages
from mae_jax.distributed import sharding, vote
from mae_jax.utils import console, signals


def extract_source(
  apply: Callable[[Any, Mapping[str, jax.Array]], Any],
  params: Any,
  source: sources.Source,
  data: DataConfig,
  *,
  mesh: Mesh,
  batch_size: int,
  limit: int = 0,
  unreadable: BadImages | None = None,
) -> tuple[Any, np.ndarray, int]:
  """Runs `apply(params, batch)` over the images of a source, each once.

  Args:
    apply: a jitted function whose outputs, a tree of [B, ...], are replicated,
      so that every process can read them. A batch has "image", "label", "mask"
      (0 = padding or unreadable), "readable" and "id".
    params: first argument of `apply`.
    source: the images.
    data: settings of preprocessing.
    mesh: the devices.
    batch_size: B, over all processes.
    limit: maximum number of images; 0 for all.
    unreadable: collects the names of images that cannot be read.

  Returns:
    The outputs of all real examples [N, ...], their labels [N], and the number
    of unreadable images.

  Raises:
    RunInterrupted: in all processes, if one of them was asked to stop.
  """
  batches = pipeline.eval_batches(
    source,
    data,
    batch_size=batch_size,
    rows=sharding.local_rows(mesh, batch_size),
    limit=limit,
    unreadable=unreadable,
  )
  gather = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))
  outputs, labels, num_unreadable = [], [], 0
  votes = None if signals.stop_requested() is None else vote.AsyncVote(mesh, 1)
  bar = console.progress_bar(
    source.subset(limit).num_examples,
    desc="evaluating",
    disable=jax.process_index() != 0,
    leave=False,
    delay=2,
  )
  with bar:
    for batch in sharding.prefetch(mesh, batches, batch_size, ahead=1):
      out = apply(params, batch)
      if votes:
        votes.cast(bool(signals.stop_requested()))
        if any(votes.count()):
          raise signals.RunInterrupted
      signals.check()
      label, mask, readable = jax.device_get(
        gather((batch["label"], batch["mask"], batch["readable"]))
      )
      real, bad = mask > 0, int((~readable).sum())
      outputs.append(
        jax.tree.map(lambda x, real=real: np.asarray(x)[real], out)
      )
      labels.append(label[real])
      num_unreadable += bad
      bar.update(int(real.sum()) + bad)
  joined = jax.tree.map(lambda *x: np.concatenate(x), *outputs)
  return joined, np.concatenate(labels), num_unreadable
