"""Weights in our layout, wherever they come from, read array by array."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from mae_jax import checkpoints
from mae_jax.conversion import model_info as facts_lib
from mae_jax.conversion import run_config
from mae_jax.models import batch_norm, patchify, pos_embed

TABLES = {  # of fixed positions, by path: which part has them
  "model/encoder/pos_embed": "encoder",
  "model/decoder/pos_embed": "decoder",
}
STATS = ("stats/mean", "stats/var")


@dataclasses.dataclass(frozen=True)
class Weights:
  """A network's parameters.

  Attributes:
    what: where they are, for messages.
    dialect: a name in `table.DIALECTS`.
    facts: what is known of the network.
    run: the same as a checkpoint keeps it.
    dtype: that holds all of them as they are stored.
    shapes: of our arrays, by path.
    read: gives an array by its path.
    finish: is called when all is read; raises if it was damaged.
    notes: what was corrected or left out, a line each.
  """

  what: str
  dialect: str
  facts: facts_lib.ModelInfo
  run: checkpoints.CheckpointMetadata
  dtype: np.dtype
  shapes: Mapping[str, tuple[int, ...]]
  read: Callable[[str], np.ndarray]
  finish: Callable[[], None] = lambda: None
  notes: tuple[str, ...] = ()


def fixed_table(found: facts_lib.ModelInfo, part: str) -> np.ndarray:
  """[1, 1 + L, D] float32: the sin-cos positions of encoder or decoder."""
  assert found.image_size
  width = found.width
  if part == "decoder":
    assert found.decoder
    width = found.decoder.width
  grid = patchify.grid_size(found.image_size, found.patch_size)
  return np.asarray(pos_embed.with_cls(pos_embed.sincos_2d(grid, width)))


def with_tables(weights: Weights) -> Weights:
  """With the fixed positions, which we keep nowhere and others do."""
  tables = {
    path: fixed_table(weights.facts, part)
    for path, part in TABLES.items()
    if path not in weights.shapes
    and (part == "encoder" or weights.facts.decoder is not None)
  }

  def read(path: str) -> np.ndarray:
    return tables[path] if path in tables else weights.read(path)

  shapes = {path: table.shape for path, table in tables.items()}
  return dataclasses.replace(
    weights, shapes={**weights.shapes, **shapes}, read=read
  )


def folded(weights: Weights) -> Weights:
  """A probe as a classifier: BatchNorm in evaluation is part of its layer."""
  mean, var = (weights.read(path).astype(np.float64) for path in STATS)
  scale = 1 / np.sqrt(var + batch_norm.EPS)
  kernel = weights.read("head/kernel").astype(np.float64) * scale[:, None]
  bias = weights.read("head/bias") - mean @ kernel
  head = {
    "model/head/kernel": kernel.astype(np.float32),
    "model/head/bias": bias.astype(np.float32),
  }

  def read(path: str) -> np.ndarray:
    return head[path] if path in head else weights.read(path)

  shapes = {
    path: shape
    for path, shape in weights.shapes.items()
    if path.startswith("model/")
  }
  found = dataclasses.replace(weights.facts, kind=facts_lib.CLASSIFIER)
  return dataclasses.replace(
    weights,
    facts=found,
    run=run_config.to_run(found, weights.what, weights.run),
    shapes=shapes | {path: x.shape for path, x in head.items()},
    read=read,
    notes=(
      *weights.notes,
      "the BatchNorm of the probe is folded into its linear layer: the same "
      "function, in other numbers",
    ),
  )
