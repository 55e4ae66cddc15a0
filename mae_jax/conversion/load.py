"""Opens weights of any dialect."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from mae_jax import checkpoints
from mae_jax.checkpoints import checksums
from mae_jax.conversion import (
  formats,
  import_weights,
  model_info,
  native,
  run_config,
)
from mae_jax.conversion import model_info as facts_lib
from mae_jax.conversion import weights as weights_lib
from mae_jax.distributed import sharding
from mae_jax.utils import console, storage

POSITIONS = ("keep", "sincos")


def open_weights(
  path: epath.PathLike,
  local: pathlib.Path | None = None,
  *,
  dialect: str | None = None,
  hints: facts_lib.ModelOverrides = facts_lib.NO_OVERRIDES,
) -> weights_lib.Weights:
  """Opens weights.

  Args:
    path: a checkpoint of ours, a file, or a directory with a config.json.
    local: where `table.local` has put it; not needed for a checkpoint of ours.
    dialect: a name in `table.NAMES`; None to find it out.
    hints: what is known of the network besides.

  Raises:
    ConfigError: on anything that is not as it should be.
  """
  if dialect == formats.JAX or (
    dialect is None and not formats.is_foreign(path)
  ):
    return native.open_checkpoint(path, hints)
  assert local is not None
  found = formats.open_tensors(local)
  dialect = dialect or formats.detect(local, found)
  return import_weights.ForeignCheckpoint(
    local, found, dialect, hints
  ).weights()


def describe(
  path: epath.PathLike,
  local: pathlib.Path,
  dialect: str | None,
  hints: facts_lib.ModelOverrides,
) -> tuple[str, facts_lib.ModelInfo]:
  """The dialect and what is known of weights, whether or not that is enough.

  Raises:
    ConfigError: if they are of no dialect.
  """
  if dialect == formats.JAX or (
    dialect is None and not formats.is_foreign(path)
  ):
    return formats.JAX, native.open_checkpoint(path, hints).facts
  found = formats.open_tensors(local)
  dialect = dialect or formats.detect(local, found)
  return dialect, import_weights.ForeignCheckpoint(
    local, found, dialect, hints
  ).facts


def arrays(weights: weights_lib.Weights) -> Iterator[tuple[str, np.ndarray]]:
  """Each array by its path, of float32, one at a time; then checks them."""
  for path in weights.shapes:
    yield path, weights.read(path).astype(np.float32, copy=False)
  weights.finish()


def locate(path: epath.PathLike) -> epath.Path:
  """The directory of a checkpoint's step, or the file or folder of others.

  Raises:
    ConfigError: if there is none.
  """
  if not formats.is_foreign(path):
    return checkpoints.find_step(path)
  formats.check_exists(path)
  return storage.absolute(path)


def read_metadata(path: epath.PathLike) -> checkpoints.CheckpointMetadata:
  """What is known of the run that parameters come from; as `load_any` has it.

  Raises:
    ConfigError: if there are none, or they are damaged.
  """
  if not formats.is_foreign(path):
    return checkpoints.read_metadata(path)
  with formats.local(path) as local:
    hints = model_info.ModelOverrides(no_decoder=True)
    return open_weights(path, local, hints=hints).run


def load_any(
  path: epath.PathLike,
  mesh: Mesh,
  hints: model_info.ModelOverrides = model_info.NO_OVERRIDES,
) -> tuple[dict[str, Any], checkpoints.CheckpointMetadata]:
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
  if not formats.is_foreign(path):
    params, run = checkpoints.load_any(path, mesh)
    run_config.check_one(path, run)
    return params, run
  with formats.local(path) as local:
    weights = open_weights(path, local, hints=hints)
    shapes = {
      name: jax.ShapeDtypeStruct(shape, "float32")
      for name, shape in weights.shapes.items()
    }
    where = sharding.state_shardings(mesh, shapes)
    placed = {
      name: jax.device_put(array, where[name])
      for name, array in arrays(weights)
    }
  if jax.process_index() == 0:
    found = model_info.KINDS[weights.facts.kind]
    console.info(f"{path}: {weights.dialect}, {found}")
    for note in weights.notes:
      console.warn(f"{path}: {note}")
  return checksums.unflatten(placed), weights.run
