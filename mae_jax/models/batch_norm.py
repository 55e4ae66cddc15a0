"""BatchNorm without scale and shift, over groups of examples.

PyTorch computes statistics over one device's batch: 512 images in the
reference's linear probe. Here a group is a fixed number of consecutive examples
of the global batch, on any number of devices.
"""

from typing import Self

import flax.struct
import jax
import jax.numpy as jnp

EPS = 1e-6
MOMENTUM = 0.1  # PyTorch's convention: the weight of the newest statistics


@flax.struct.dataclass
class Statistics:
  """Running statistics, for evaluation.

  Attributes:
    mean: [D].
    var: [D], unbiased.
  """

  mean: jax.Array
  var: jax.Array

  @classmethod
  def create(cls, width: int) -> Self:
    """Returns the statistics before the first batch."""
    return cls(jnp.zeros(width), jnp.ones(width))


def normalize_batch(
  x: jax.Array, stats: Statistics, group: int
) -> tuple[jax.Array, Statistics]:
  """Normalizes a batch by its own statistics.

  Args:
    x: [B, D] float32.
    stats: running statistics before this batch.
    group: number of examples in a group, a divisor of B; a smaller batch is one
      group.

  Returns:
    [B, D], and the running statistics updated with the mean over groups.
  """
  size = min(group, len(x))
  groups = x.reshape(-1, size, x.shape[1])
  mean = groups.mean(axis=1, keepdims=True)
  var = groups.var(axis=1, keepdims=True)
  normalized = (groups - mean) / jnp.sqrt(var + EPS)
  unbiased = var.mean(axis=(0, 1)) * (size / max(size - 1, 1))

  def mix(old: jax.Array, new: jax.Array) -> jax.Array:
    return (1 - MOMENTUM) * old + MOMENTUM * new

  stats = Statistics(
    mix(stats.mean, mean.mean(axis=(0, 1))), mix(stats.var, unbiased)
  )
  return normalized.reshape(x.shape), stats


def normalize(x: jax.Array, stats: Statistics) -> jax.Array:
  """Normalizes [B, D] by the running statistics."""
  return (x - stats.mean) / jnp.sqrt(stats.var + EPS)
