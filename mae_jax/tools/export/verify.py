"""Compares an export with its model on random images and masks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mae_jax.config import MeshConfig
from mae_jax.distributed import sharding
from mae_jax.utils.errors import TrainingError

BATCHES = (1, 3)
# The allowed difference relative to the largest output, by activation dtype:
# rounding in another order.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.03}

Values = Sequence[np.ndarray]
Inputs = tuple[np.ndarray, ...]  # arguments of one call


def cpu_mesh() -> Mesh:
  """Returns a mesh of one CPU device; its traced programs run anywhere."""
  return sharding.make_mesh(MeshConfig(), jax.local_devices(backend="cpu")[:1])


def num_masked(length: int) -> int:
  """Returns how many of L patches the masks of `random_inputs` mask."""
  return length // 2


def random_inputs(inputs: Mapping[str, jax.ShapeDtypeStruct]) -> list[Inputs]:
  """Returns images from 0 to 255, and masks, for each B in BATCHES.

  Args:
    inputs: shape and dtype of one example, by name; bool for masks [L].
  """
  random = np.random.default_rng(0)

  def draw(batch: int, each: jax.ShapeDtypeStruct) -> np.ndarray:
    shape = (batch, *each.shape)
    if each.dtype == np.bool:
      (length,) = each.shape
      mask = np.arange(length) < num_masked(length)
      return random.permuted(np.broadcast_to(mask, shape), axis=1)
    return random.integers(0, 256, shape).astype(each.dtype)

  return [
    tuple(draw(batch, each) for each in inputs.values()) for batch in BATCHES
  ]


def values(
  call: Callable[..., jax.Array], weights: Any, inputs: Sequence[Inputs]
) -> list[np.ndarray]:
  """Applies a function of weights and inputs to each batch."""
  compiled = jax.jit(call)
  with jax.set_mesh(cpu_mesh()):
    return [np.asarray(compiled(weights, *each)) for each in inputs]


def largest(arrays: Values) -> float:
  """Returns the largest magnitude."""
  return max(float(np.abs(each).max()) for each in arrays)


def difference(a: Values, b: Values) -> float:
  """Returns the largest magnitude of a - b."""
  return largest([x - y for x, y in zip(a, b, strict=True)])


def check(found: Values, wanted: Values, dtype: str) -> float:
  """Returns the largest difference of an export's outputs from the model's.

  `dtype` is that of activations, a key of TOLERANCE.

  Raises:
    TrainingError: if the difference is more than rounding.
  """
  with np.errstate(invalid="ignore"):
    apart = difference(found, wanted)
  allowed = TOLERANCE[dtype] * largest(wanted)
  if not apart <= allowed:  # NaN fails too
    raise TrainingError(
      f"the export differs from the model by {apart:.3g}, and rounding "
      f"explains at most {allowed:.3g}: nothing was saved. If the "
      "checkpoint is finite, the installed JAX, TensorFlow or ONNX is at "
      "fault: install the versions of constraints.txt"
    )
  return apart
