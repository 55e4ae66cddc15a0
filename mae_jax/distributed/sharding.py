"""The mesh, where each parameter lives on it, and how a batch gets there.

One mesh of two axes, ("data", "fsdp"): the batch is split over both, parameters
and optimizer state over "fsdp" by rule. Nothing here or above names a device.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mae_jax.config import MeshConfig
from mae_jax.utils.errors import ConfigError

AXES = ("data", "fsdp")

# The first rule whose pattern is found in a parameter's path gives the axis
# to split, counted from the end, so that stacked and single layers share it.
# Kernels that widen are split along their input and those that narrow along
# their output: always the model width, the dimension every variant has.
RULES: tuple[tuple[str, int], ...] = (
  (r"(qkv|fc1|pred)/kernel$", -2),
  (r"(proj|fc2|embed)/kernel$", -1),
)


def make_mesh(
  config: MeshConfig, devices: Iterable[jax.Device] | None = None
) -> Mesh:
  """All devices as a (data, fsdp) mesh.

  Raises:
    ConfigError: if `fsdp` does not divide the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  count = len(devices)
  if config.fsdp < 1 or count % config.fsdp:
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    raise ConfigError(
      f"mesh.fsdp={config.fsdp} does not divide the {count} devices; use one "
      f"of {', '.join(map(str, divisors))}"
    )
  # A TPU slice is a torus, of which `fsdp` may be less than a side.
  grid = mesh_utils.create_device_mesh(
    (count // config.fsdp, config.fsdp), devices, allow_split_physical_axes=True
  )
  return Mesh(grid, AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def param_spec(path: str, shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
  """Where one array of the state lives.

  Args:
    path: its keys joined by "/", e.g. "encoder/stack/blocks/mlp/fc1/kernel"; a
      moment of the optimizer ends in the path of its parameter.
    shape: its shape.
    fsdp: size of that mesh axis.

  Returns:
    A spec that splits one axis, or replicates what is small, matches no rule,
    or cannot be divided evenly.
  """
  for pattern, axis in RULES:
    if re.search(pattern, path) and shape[axis] % fsdp == 0:
      spec: list[str | None] = [None] * len(shape)
      spec[axis] = "fsdp"
      return PartitionSpec(*spec)
  return PartitionSpec()


def state_shardings(mesh: Mesh, state: Any) -> Any:
  """A NamedSharding for each array of a state, by its path."""

  def sharding(path: Any, leaf: Any) -> NamedSharding:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    spec = param_spec(name, leaf.shape, mesh.shape["fsdp"])
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(sharding, state)


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Axis 0 split over all devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def check_batch(mesh: Mesh, batch_size: int, field: str) -> None:
  """Refuses a batch that devices do not divide.

  Raises:
    ConfigError: with the nearest sizes that do.
  """
  count = math.prod(mesh.shape.values())
  if batch_size < 1 or batch_size % count:
    below = batch_size // count * count
    nearest = f"{below} and {below + count}" if below > 0 else f"{count}"
    raise ConfigError(
      f"{field}={batch_size} is not a multiple of the {count} devices; the "
      f"nearest are {nearest}"
    )


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
  """The rows of a global batch that this process must supply, in order."""
  indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  rows = [np.arange(batch_size)[index] for index in indices.values()]
  return np.unique(np.concatenate(rows))


def to_global(mesh: Mesh, batch: Any, batch_size: int) -> Any:
  """Arrays of this process's rows [b, ...] -> global arrays [B, ...]."""
  rows = local_rows(mesh, batch_size)
  sharding = batch_sharding(mesh)

  def place(local: np.ndarray) -> jax.Array:
    def part(index: tuple[slice, ...] | None) -> np.ndarray:
      assert index is not None
      start, stop, _ = index[0].indices(batch_size)
      first = np.searchsorted(rows, start)
      return local[first : first + stop - start]

    shape = (batch_size, *local.shape[1:])
    return jax.make_array_from_callback(shape, sharding, part)

  return jax.tree.map(place, batch)


def prefetch(
  mesh: Mesh, batches: Iterable[Any], batch_size: int, ahead: int
) -> Iterator[Any]:
  """Global batches, of which `ahead` are on their way to the devices."""
  waiting: list[Any] = []
  for batch in batches:
    waiting.append(to_global(mesh, batch, batch_size))
    if len(waiting) > ahead:
      yield waiting.pop(0)
  yield from waiting


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
