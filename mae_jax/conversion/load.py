"""Opens weights of any format."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh

from mae_jax import checkpoints
from mae_jax.checkpoints import checksums
from mae_jax.conversion import (
  formats,
  hub,
  import_weights,
  model_info,
  run_config,
  tensor_files,
  tensor_views,
)
from mae_jax.conversion.weights import NOT_NEEDED, POSITION_TABLES, Weights
from mae_jax.distributed import sharding
from mae_jax.models import architecture, classifiers, discriminator
from mae_jax.utils import console

POSITIONS = ("keep", "sincos")
# Settings of a classifier that the checkpoint decides, by section.
_DECIDED = {
  "data": ("image_size", "channels", "mean", "std"),
  "model": ("variant", *architecture.FIELDS),
}


def open_unchecked(
  path: epath.PathLike,
  local: pathlib.Path | None = None,
  *,
  weight_format: str | None = None,
  overrides: model_info.ModelOverrides = model_info.NO_OVERRIDES,
) -> Weights | import_weights.ForeignCheckpoint:
  """Opens weights whose info may be incomplete, or whose names may be wrong.

  Args:
    path: a checkpoint of this project, a file, a directory with a config.json,
      or a path on the Hub.
    local: the result of `formats.local_copy`; None for a checkpoint, and for
      weights that are not in a bucket.
    weight_format: a name in `formats.FORMAT_NAMES`; None to detect it.
    overrides: model info that the file lacks, or that it states wrongly.

  Raises:
    ConfigError: if the weights are missing, damaged or of no known format.
  """
  if weight_format is None and not formats.is_foreign(path):
    weight_format = formats.JAX
  if weight_format == formats.JAX:
    return _open_checkpoint(hub.resolve(path), overrides)
  if local is None:
    formats.check_exists(path)
    local = pathlib.Path(formats.locate(path))
  found = formats.open_tensors(local)
  name = weight_format or formats.detect(local, found)
  return import_weights.ForeignCheckpoint(
    local, found, name, overrides, hub.source(path)
  )


def open_weights(
  path: epath.PathLike,
  local: pathlib.Path | None = None,
  *,
  weight_format: str | None = None,
  overrides: model_info.ModelOverrides = model_info.NO_OVERRIDES,
) -> Weights:
  """Opens weights as `open_unchecked`, and checks them.

  Raises:
    ConfigError: as `open_unchecked`, or if the weights cannot be converted.
  """
  found = open_unchecked(
    path, local, weight_format=weight_format, overrides=overrides
  )
  return found if isinstance(found, Weights) else found.weights()


def _open_checkpoint(
  path: epath.PathLike, overrides: model_info.ModelOverrides
) -> Weights:
  directory = checkpoints.find_step(path)
  run = checkpoints.read_metadata(directory)
  arrays = checkpoints.ArrayReader(directory)
  weights = _of_arrays(arrays.shapes, arrays.read, run, str(path), overrides)
  return dataclasses.replace(weights, finish=arrays.verify)


def weights_of(
  params: Mapping[str, Any],
  run: checkpoints.CheckpointMetadata,
  what: str,
  overrides: model_info.ModelOverrides = model_info.NO_OVERRIDES,
) -> Weights:
  """Returns the weights of a network in memory, for `export_weights.write`.

  Args:
    params: parameters by role, as `load_any` returns them: arrays of NumPy, or
      of JAX on devices of this process.
    run: the run that trained them.
    what: what messages call them, such as the path they were loaded from.
    overrides: what is to be converted, such as `encoder_only`.

  Returns:
    The weights; averaged parameters if there are any.

  Raises:
    ConfigError: if the run trains many networks, or overrides contradict it.
  """
  arrays = checksums.flatten(params)
  shapes = {name: tuple(array.shape) for name, array in arrays.items()}

  def read(name: str) -> np.ndarray:
    return np.asarray(jax.device_get(arrays[name]), np.float32)

  return _of_arrays(shapes, read, run, what, overrides)


def _of_arrays(
  shapes: Mapping[str, tuple[int, ...]],
  read: Callable[[str], np.ndarray],
  run: checkpoints.CheckpointMetadata,
  what: str,
  overrides: model_info.ModelOverrides,
) -> Weights:
  """Returns weights of arrays by role; takes averaged ones if there are any."""
  task = run.config.task
  run_config.check_single_network(what, run)
  role, notes = classifiers.MODEL, []
  if run.config.classify.ema and task == "finetune":
    role = classifiers.AVERAGED
    notes.append("the averaged parameters are used (classify.ema)")
    classify = dataclasses.replace(run.config.classify, ema=0.0)
    run = dataclasses.replace(
      run, config=dataclasses.replace(run.config, classify=classify)
    )
  roles = {classifiers.MODEL, classifiers.AVERAGED, discriminator.ROLE}
  other = roles - {role}
  origin = {
    _renamed(name, role): name
    for name in shapes
    if name.partition("/")[0] not in other
  }
  has_decoder = any(name.startswith("model/decoder/") for name in origin)
  kind = model_info.KIND_OF_TASK[task]
  if kind == model_info.MAE and not has_decoder:
    kind = model_info.ENCODER
  info = model_info.with_overrides(run_config.from_run(run, kind), overrides)
  if info.kind == model_info.ENCODER:
    origin = {k: v for k, v in origin.items() if k.startswith("model/encoder/")}
  if overrides.positions == "sincos":
    model_info.check_fixed_positions(info, what)
    for name in POSITION_TABLES.keys() & origin.keys():
      del origin[name]
      notes.append(f"{name} is replaced by the sin-cos table")
  run = run_config.to_run(info, what, run)
  dtype = tensor_files.FLOATS[run.origin.get("dtype", "F32")]
  return Weights(
    what=what,
    weight_format=formats.JAX,
    info=info,
    run=run,
    dtype=np.dtype(dtype),
    shapes={path: shapes[name] for path, name in origin.items()},
    read=lambda path: read(origin[path]),
    notes=tuple(notes),
  )


def _renamed(name: str, role: str) -> str:
  head, slash, rest = name.partition("/")
  return (classifiers.MODEL if head == role else head) + slash + rest


def read_arrays(weights: Weights) -> Iterator[tuple[str, np.ndarray]]:
  """Yields (path, float32 array) one at a time, then verifies checksums."""
  for path in weights.shapes:
    yield path, weights.read(path).astype(np.float32, copy=False)
  weights.finish()


def locate(path: epath.PathLike) -> epath.Path:
  """Returns the directory of a checkpoint's step, or another format's path."""
  if not formats.is_foreign(path):
    return checkpoints.find_step(path)
  formats.check_exists(path)
  return formats.locate(path)


def read_metadata(path: epath.PathLike) -> checkpoints.CheckpointMetadata:
  """Reads the settings of the run that `load_any` would return."""
  if not formats.is_foreign(path):
    return checkpoints.read_metadata(path)
  with formats.local_copy(path) as local:
    overrides = model_info.ModelOverrides(no_decoder=True)
    return open_weights(path, local, overrides=overrides).run


def start_from(recipe: ml_collections.ConfigDict, path: epath.PathLike) -> None:
  """Sets `init_from` in a recipe, and what the checkpoint decides.

  The encoder's architecture, the image size, channels, mean and std become
  those of the checkpoint. Flags can still replace them, and the run saves the
  values.

  Args:
    recipe: settings, as a recipe's `get_config` returns them; changed.
    path: a workdir, a checkpoint, or weights.

  Raises:
    ConfigError: if there is no checkpoint.
  """
  before = read_metadata(path).config
  recipe.init_from = os.fspath(path)
  for section, names in _DECIDED.items():
    with recipe[section].unlocked(), recipe[section].ignore_type():
      for name in names:
        recipe[section][name] = getattr(getattr(before, section), name)


def load_any(
  path: epath.PathLike,
  mesh: Mesh,
  overrides: model_info.ModelOverrides = model_info.NO_OVERRIDES,
) -> tuple[dict[str, Any], checkpoints.CheckpointMetadata]:
  """Loads the parameters of weights of any format.

  Args:
    path: a workdir, its `checkpoints`, one step's directory, another format's
      weights, or a path on the Hub.
    mesh: the devices to put them on, sharded as in `sharding`.
    overrides: model info that the file lacks, or that it states wrongly.

  Returns:
    The parameters by role, and the settings of the run they come from.

  Raises:
    ConfigError: if the weights are missing, damaged, or do not fit together.
  """
  if not formats.is_foreign(path):
    params, run = checkpoints.load_any(path, mesh)
    run_config.check_single_network(path, run)
    return params, run
  with formats.local_copy(path) as local:
    weights = open_weights(path, local, overrides=overrides)
    shapes = {
      name: jax.ShapeDtypeStruct(shape, "float32")
      for name, shape in weights.shapes.items()
    }
    where = sharding.state_shardings(mesh, shapes)
    placed = {
      name: jax.device_put(array, where[name])
      for name, array in read_arrays(weights)
    }
  if jax.process_index() == 0:
    found = model_info.KINDS[weights.info.kind]
    console.info(f"{path}: {weights.weight_format}, {found}")
    for note in weights.notes:
      usual = note.startswith((NOT_NEEDED, tensor_views.PREFIX_NOTE))
      (console.info if usual else console.warn)(f"{path}: {note}")
  return traverse_util.unflatten_dict(placed, "/"), weights.run
