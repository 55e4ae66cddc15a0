"""Opens checkpoints of this project with the interface of other weights."""

from __future__ import annotations

import dataclasses

import numpy as np
from etils import epath

from mae_jax import checkpoints
from mae_jax.conversion import formats, model_info, run_config, tensor_files
from mae_jax.conversion.weights import POSITION_TABLES, Weights
from mae_jax.models import classifiers, discriminator


def open_checkpoint(
  path: epath.PathLike, overrides: model_info.ModelOverrides
) -> Weights:
  """Opens a checkpoint; uses averaged parameters if there are any.

  Args:
    path: a workdir, its `checkpoints`, or one step's directory.
    overrides: parts to leave out or to replace.
  """
  directory = checkpoints.find_step(path)
  run, arrays = (
    checkpoints.read_metadata(directory),
    checkpoints.ArrayReader(directory),
  )
  task = run.config.task
  run_config.check_single_network(path, run)
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
    for name in arrays.shapes
    if name.partition("/")[0] not in other
  }
  has_decoder = any(name.startswith("model/decoder/") for name in origin)
  kind = {
    "pretrain": model_info.MAE if has_decoder else model_info.ENCODER,
    "finetune": model_info.CLASSIFIER,
    "linprobe": model_info.PROBE,
  }[task]
  info = model_info.with_overrides(run_config.from_run(run, kind), overrides)
  if info.kind == model_info.ENCODER:
    origin = {k: v for k, v in origin.items() if k.startswith("model/encoder/")}
  if overrides.positions == "sincos":
    model_info.check_fixed_positions(info, str(path))
    for name in POSITION_TABLES.keys() & origin.keys():
      del origin[name]
      notes.append(f"{name} is replaced by the sin-cos table")
  run = run_config.to_run(info, str(path), run)
  dtype = tensor_files.FLOATS[run.origin["dtype"]] if run.origin else np.float32
  return Weights(
    what=str(path),
    weight_format=formats.JAX,
    info=info,
    run=run,
    dtype=np.dtype(dtype),
    shapes={path: arrays.shapes[name] for path, name in origin.items()},
    read=lambda path: arrays.read(origin[path]),
    finish=arrays.verify,
    notes=tuple(notes),
  )


def _renamed(name: str, role: str) -> str:
  head, slash, rest = name.partition("/")
  return (classifiers.MODEL if head == role else head) + slash + rest
