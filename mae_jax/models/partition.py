"""Keeps activations split over the batch on whatever mesh is in force.

With parameters and batch split over the same mesh axis, the partitioner may
choose to replicate the activations of a scanned block: a ViT-H step on 256
chips then wants 576 GB a chip. Saying what is meant, inside the block, brings
it back to 6.6 GB. The model names no device: it asks JAX for the ambient mesh.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec


def constrain_batch(x: jax.Array) -> jax.Array:
  """Splits axis 0 over all axes of the ambient mesh; x itself without one.

  Where a device has a part of its own already, as in `shard_map`, it stays.
  """
  axes = jax.sharding.get_abstract_mesh().auto_axes
  if not axes:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(axes))


def replicate(x: jax.Array) -> jax.Array:
  """Gives each device of the ambient mesh all of x; x itself without one."""
  if not jax.sharding.get_abstract_mesh().auto_axes:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec())


def num_devices() -> int:
  """Of the ambient mesh, over which `constrain_batch` splits."""
  mesh = jax.sharding.get_abstract_mesh()
  return math.prod(mesh.shape[axis] for axis in mesh.auto_axes)


def on_each_device(
  function: Callable[[jax.Array], jax.Array],
) -> Callable[[jax.Array], jax.Array]:
  """Applies a function of [B, ...] to each device's part of the batch.

  For loops over the batch, which the partitioner would run over what lies on
  other devices.
  """
  axes = jax.sharding.get_abstract_mesh().auto_axes
  if not axes:
    return function
  spec = PartitionSpec(axes)
  return jax.shard_map(function, in_specs=spec, out_specs=spec)
