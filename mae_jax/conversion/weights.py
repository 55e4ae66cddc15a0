"""Weights of any source in this project's layout, read array by array."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Self

import numpy as np

from mae_jax import checkpoints
from mae_jax.conversion import model_info, run_config
from mae_jax.models import batch_norm, patchify, pos_embed

# Paths of fixed position tables.
POSITION_TABLES = {
  "model/encoder/pos_embed": "encoder",
  "model/decoder/pos_embed": "decoder",
}
NOT_NEEDED = "not needed: "  # begins a note of tensors that have no use here
STATS = ("stats/mean", "stats/var")


@dataclasses.dataclass(frozen=True)
class Weights:
  """A network's parameters.

  Attributes:
    what: path of the weights, for messages.
    weight_format: a name in `formats.FORMAT_NAMES`.
    info: properties of the network.
    run: the same as checkpoint metadata.
    dtype: the narrowest dtype that holds all stored values.
    shapes: shapes of our arrays, by path.
    read: returns an array by its path.
    finish: verifies the data after the last read; raises if it was damaged.
    notes: corrections and omissions, one line each; those that begin with
      NOT_NEEDED or `tensor_views.PREFIX_NOTE` are usual.
  """

  what: str
  weight_format: str
  info: model_info.ModelInfo
  run: checkpoints.CheckpointMetadata
  dtype: np.dtype
  shapes: Mapping[str, tuple[int, ...]]
  read: Callable[[str], np.ndarray]
  finish: Callable[[], None] = lambda: None
  notes: tuple[str, ...] = ()

  def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> Self:
    """Returns the weights with these arrays, by path, added or replaced."""

    def read(path: str) -> np.ndarray:
      return arrays[path] if path in arrays else self.read(path)

    shapes = {path: array.shape for path, array in arrays.items()}
    return dataclasses.replace(
      self, shapes={**self.shapes, **shapes}, read=read
    )


def sincos_table(found: model_info.ModelInfo, part: str) -> np.ndarray:
  """Returns a part's sin-cos positions, [1, 1 + L, D] float32."""
  assert found.image_size
  width = found.width
  if part == "decoder":
    assert found.decoder
    width = found.decoder.width
  grid = patchify.grid_size(found.image_size, found.patch_size)
  return np.asarray(pos_embed.with_cls(pos_embed.sincos_2d(grid, width)))


def add_position_tables(weights: Weights) -> Weights:
  """Adds the sin-cos position tables, which other formats store."""
  return weights.with_arrays(
    {
      path: sincos_table(weights.info, part)
      for path, part in POSITION_TABLES.items()
      if path not in weights.shapes
      and (part == "encoder" or weights.info.decoder is not None)
    }
  )


def fold_batch_norm(weights: Weights) -> Weights:
  """Converts a probe to a classifier by folding BatchNorm into the layer."""
  mean, var = (weights.read(path).astype(np.float64) for path in STATS)
  scale = 1 / np.sqrt(var + batch_norm.EPS)
  kernel = weights.read("head/kernel").astype(np.float64) * scale[:, None]
  bias = weights.read("head/bias") - mean @ kernel
  folded = weights.with_arrays(
    {
      "model/head/kernel": kernel.astype(np.float32),
      "model/head/bias": bias.astype(np.float32),
    }
  )
  found = dataclasses.replace(weights.info, kind=model_info.CLASSIFIER)
  return dataclasses.replace(
    folded,
    info=found,
    run=run_config.to_run(found, weights.what, weights.run),
    shapes={k: v for k, v in folded.shapes.items() if k.startswith("model/")},
    notes=(
      *weights.notes,
      "the BatchNorm of the probe is folded into its linear layer, which "
      "computes the same function",
    ),
  )
