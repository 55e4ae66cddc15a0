"""Compares an export with its model on random images."""

from collections.abc import Callable, Sequence
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


def cpu_mesh() -> Mesh:
  """Returns a mesh of one CPU device; its traced programs run anywhere."""
  return sharding.make_mesh(MeshConfig(), jax.local_devices(backend="cpu")[:1])


def random_images(image: jax.ShapeDtypeStruct) -> list[np.ndarray]:
  """Returns images [B, H, W, C] from 0 to 255 for each B in BATCHES."""
  random = np.random.default_rng(0)
  return [
    random.integers(0, 256, (batch, *image.shape)).astype(image.dtype)
    for batch in BATCHES
  ]


def values(
  call: Callable[[Any, jax.Array], jax.Array], weights: Any, images: Values
) -> list[np.ndarray]:
  """Applies a function of weights and images to each batch."""
  compiled = jax.jit(call)
  with jax.set_mesh(cpu_mesh()):
    return [np.asarray(compiled(weights, each)) for each in images]


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
      "checkpoint is finite, the installed JAX or TensorFlow is at fault: "
      "install the versions of constraints.txt"
    )
  return apart
