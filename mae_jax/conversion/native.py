"""Checkpoints of this project, opened as any other weights."""

from __future__ import annotations

import dataclasses

import numpy as np
from etils import epath

from mae_jax import checkpoints
from mae_jax.conversion import formats, run_config, tensor_files
from mae_jax.conversion import model_info as facts_lib
from mae_jax.conversion import weights as weights_lib
from mae_jax.models import classifiers, discriminator


def open_checkpoint(
  path: epath.PathLike, hints: facts_lib.ModelOverrides
) -> weights_lib.Weights:
  """Opens a checkpoint; of averaged parameters, the averages.

  Args:
    path: a workdir, its `checkpoints`, or one step's directory.
    hints: what is to be left out or replaced.

  Raises:
    ConfigError: if there is none, it is damaged, or a hint contradicts it.
  """
  directory = checkpoints.find_step(path)
  run, arrays = (
    checkpoints.read_metadata(directory),
    checkpoints.ArrayReader(directory),
  )
  task = run.config.task
  run_config.check_one(path, run)
  role, notes = classifiers.MODEL, []
  if run.config.classify.ema and task == "finetune":
    role = classifiers.AVERAGED
    notes.append("the averaged parameters are taken (classify.ema)")
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
    "pretrain": facts_lib.MAE if has_decoder else facts_lib.ENCODER,
    "finetune": facts_lib.CLASSIFIER,
    "linprobe": facts_lib.PROBE,
  }[task]
  facts = facts_lib.with_overrides(run_config.from_run(run, kind), hints)
  if facts.kind == facts_lib.ENCODER:
    origin = {k: v for k, v in origin.items() if k.startswith("model/encoder/")}
  if hints.positions == "sincos":
    facts_lib.check_fixed(facts, str(path))
    for name in weights_lib.TABLES.keys() & origin.keys():
      del origin[name]
      notes.append(f"{name} is replaced by the sin-cos table")
  run = run_config.to_run(facts, str(path), run)
  dtype = tensor_files.FLOATS[run.origin["dtype"]] if run.origin else np.float32
  return weights_lib.Weights(
    what=str(path),
    dialect=formats.JAX,
    facts=facts,
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
