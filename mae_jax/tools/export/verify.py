"""Whether what was written does what the network does, on random images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mae_jax.tools.export import exportable as network_lib
from mae_jax.utils.errors import TrainingError

BATCHES = (1, 3)
# By the dtype of activations: how far two values may be apart, as a share of
# the largest. It is rounding, in another order.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.03}

Values = Sequence[np.ndarray]


def random_images(image_shape: tuple[int, ...]) -> list[np.ndarray]:
  """uint8 [B, H, W, C] for each B of BATCHES."""
  random = np.random.default_rng(0)
  return [
    random.integers(0, 256, (batch, *image_shape), np.uint8)
    for batch in BATCHES
  ]


def values(
  call: Callable[[Any, jax.Array], jax.Array], weights: Any, images: Values
) -> list[np.ndarray]:
  """What a function of weights and images gives, compiled for each batch."""
  compiled = jax.jit(call)
  with jax.set_mesh(network_lib.host()):
    return [np.asarray(compiled(weights, each)) for each in images]


def largest(arrays: Values) -> float:
  """The largest magnitude."""
  return max(float(np.abs(each).max()) for each in arrays)


def difference(a: Values, b: Values) -> float:
  """The largest magnitude of a - b."""
  return largest([x - y for x, y in zip(a, b, strict=True)])


def check(found: Values, wanted: Values, dtype: str) -> float:
  """Compares what was read again with the network.

  Args:
    found: its values.
    wanted: those of the network.
    dtype: of activations, a name in TOLERANCE.

  Returns:
    The largest difference.

  Raises:
    TrainingError: if that is more than rounding.
  """
  with np.errstate(invalid="ignore"):
    apart = difference(found, wanted)
  allowed = TOLERANCE[dtype] * largest(wanted)
  if not apart <= allowed:  # nor is NaN
    raise TrainingError(
      f"what was written differs from the network by {apart:.3g}, and "
      f"{allowed:.3g} is allowed for rounding: nothing is kept. If the "
      "checkpoint's values are finite, these versions of JAX or TensorFlow are "
      "at fault: take those of constraints.txt"
    )
  return apart
