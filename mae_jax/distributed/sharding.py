"""The device mesh, and the sharding of parameters and batches.

One mesh has two axes, ("data", "fsdp"). Batches are split over both axes;
parameters and optimizer state over "fsdp", by the rules below. No code names a
single device.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mae_jax.config import MeshConfig
from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError

AXES = ("data", "fsdp")

# (pattern, axis): the first pattern found in a parameter's path gives the axis
# to split. Axes count from the end, so that stacked and single layers share a
# rule. The split axis is always the model width, which every variant has: the
# input of kernels that widen and the output of kernels that narrow.
RULES: tuple[tuple[str, int], ...] = (
  (r"(qkv|fc1|pred)/kernel$", -2),
  (r"(proj|fc2|embed)/kernel$", -1),
)


def devices() -> list[jax.Device]:
  """Returns all devices.

  Raises:
    ConfigError: if there are none on the platform that is asked for.
  """
  try:
    return jax.devices()
  except (RuntimeError, AssertionError) as error:
    wanted = jax.config.jax_platforms
    raise ConfigError(
      f"JAX_PLATFORMS={wanted or ''} has no device here "
      f"({console.first_line(error)}): unset it to use any, install "
      "the extra for the platform (mae_jax[cuda13], mae_jax[tpu]), and check "
      "that no other program holds the accelerator"
    ) from error


def make_mesh(
  config: MeshConfig, chosen: Iterable[jax.Device] | None = None
) -> Mesh:
  """Arranges all devices, or the chosen ones, in a (data, fsdp) mesh.

  Raises:
    ConfigError: if `fsdp` does not divide the number of devices.
  """
  used = devices() if chosen is None else list(chosen)
  count = len(used)
  if config.fsdp < 1 or count % config.fsdp:
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    raise ConfigError(
      f"mesh.fsdp={config.fsdp} does not divide the {count} devices; use one "
      f"of {', '.join(map(str, divisors))}"
    )
  # In a TPU slice, a torus, `fsdp` may be less than a side.
  grid = mesh_utils.create_device_mesh(
    (count // config.fsdp, config.fsdp), used, allow_split_physical_axes=True
  )
  return Mesh(grid, AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def param_spec(path: str, shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
  """Chooses the sharding of one array of the state.

  Args:
    path: keys joined by "/", such as "encoder/stack/blocks/mlp/fc1/kernel". An
      optimizer moment's path ends in the path of its parameter.
    shape: shape of the array.
    fsdp: size of the "fsdp" mesh axis.

  Returns:
    A spec that splits one axis. An array that matches no rule, or that `fsdp`
    does not divide, is replicated.
  """
  for pattern, axis in RULES:
    if re.search(pattern, path) and shape[axis] % fsdp == 0:
      spec: list[str | None] = [None] * len(shape)
      spec[axis] = "fsdp"
      return PartitionSpec(*spec)
  return PartitionSpec()


def state_shardings(mesh: Mesh, state: Any) -> Any:
  """Returns the tree of NamedShardings of a state, by `param_spec`."""

  def sharding(path: Any, leaf: Any) -> NamedSharding:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    spec = param_spec(name, leaf.shape, mesh.shape["fsdp"])
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(sharding, state)


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that splits axis 0 over all devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def check_batch(mesh: Mesh, batch_size: int, field: str) -> None:
  """Checks that the number of devices divides a batch size.

  Raises:
    ConfigError: with the nearest valid sizes; `field` is the setting's name.
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
  """Returns the sorted rows of a global batch that this process must supply."""
  indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  rows = [np.arange(batch_size)[index] for index in indices.values()]
  return np.unique(np.concatenate(rows))


def to_global(mesh: Mesh, batch: Any, batch_size: int) -> Any:
  """Makes global arrays of the rows of all processes.

  Args:
    mesh: the devices.
    batch: a tree of NumPy arrays [b, ...], the rows `local_rows` in that order;
      their number is not checked.
    batch_size: B, over all processes.

  Returns:
    A tree of jax.Arrays [B, ...], split over axis 0.
  """
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
  """Yields global batches, and copies `ahead` further ones to the devices."""
  waiting: list[Any] = []
  for batch in batches:
    waiting.append(to_global(mesh, batch, batch_size))
    if len(waiting) > ahead:
      yield waiting.pop(0)
  yield from waiting


def constrain_batch(x: jax.Array) -> jax.Array:
  """Splits axis 0 over all automatic axes of the current mesh.

  Without a mesh, and inside `shard_map`, where each device has its own part
  already, this returns x unchanged.
  """
  axes = jax.sharding.get_abstract_mesh().auto_axes
  if not axes:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(axes))


def replicate(x: jax.Array) -> jax.Array:
  """Replicates x on the current mesh; returns x unchanged without a mesh."""
  if not jax.sharding.get_abstract_mesh().auto_axes:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec())


def num_devices() -> int:
  """Returns the number of devices that `constrain_batch` splits over."""
  mesh = jax.sharding.get_abstract_mesh()
  return math.prod(mesh.shape[axis] for axis in mesh.auto_axes)


def on_each_device(
  function: Callable[[jax.Array], jax.Array],
) -> Callable[[jax.Array], jax.Array]:
  """Applies a function of [B, ...] to each device's part of the batch.

  A loop over the batch needs this: the partitioner would otherwise run it over
  the rows of other devices too.
  """
  axes = jax.sharding.get_abstract_mesh().auto_axes
  if not axes:
    return function
  spec = PartitionSpec(axes)
  return jax.shard_map(function, in_specs=spec, out_specs=spec)
