"""Checkpoints of ours and weights of others, by the same calls.

What trains, evaluates or serves names a path and gets parameters; whose they
are makes no difference to it.
"""

from __future__ import annotations

from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from mae_jax import checkpoints, console, sharding, storage
from mae_jax.checkpoints import sums
from mae_jax.dialects import facts, reading, runs, table


def locate(path: epath.PathLike) -> epath.Path:
  """The directory of a checkpoint's step, or the file or folder of others.

  Raises:
    ConfigError: if there is none.
  """
  if not table.is_foreign(path):
    return checkpoints.find_step(path)
  table.check_exists(path)
  return storage.absolute(path)


def read_run(path: epath.PathLike) -> checkpoints.Run:
  """What is known of the run that parameters come from; as `load_any` has it.

  Raises:
    ConfigError: if there are none, or they are damaged.
  """
  if not table.is_foreign(path):
    return checkpoints.read_run(path)
  with table.local(path) as local:
    hints = facts.Hints(no_decoder=True)
    return reading.open_weights(path, local, hints=hints).run


def load_any(
  path: epath.PathLike, mesh: Mesh, hints: facts.Hints = facts.NO_HINTS
) -> tuple[dict[str, Any], checkpoints.Run]:
  """Reads the parameters of any network.

  Args:
    path: a workdir, its `checkpoints`, one step's directory, or weights of
      another dialect.
    mesh: the devices to put them on, by the rules of `sharding`.
    hints: what is known of the network besides.

  Returns:
    The parameters by role, and what is known of the run they come from.

  Raises:
    ConfigError: if there are none, they are damaged, or do not fit together.
  """
  if not table.is_foreign(path):
    params, run = checkpoints.load_any(path, mesh)
    runs.check_one(path, run)
    return params, run
  with table.local(path) as local:
    weights = reading.open_weights(path, local, hints=hints)
    shapes = {
      name: jax.ShapeDtypeStruct(shape, "float32")
      for name, shape in weights.shapes.items()
    }
    where = sharding.state_shardings(mesh, shapes)
    placed = {
      name: jax.device_put(array, where[name])
      for name, array in reading.arrays(weights)
    }
  if jax.process_index() == 0:
    found = facts.KINDS[weights.facts.kind]
    console.say(f"{path}: {weights.dialect}, {found}")
    for note in weights.notes:
      console.warn(f"{path}: {note}")
  return sums.nested(placed), weights.run
