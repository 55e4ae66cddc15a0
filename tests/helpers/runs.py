"""Short runs: whole ones, and their train step alone."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bench.lib.small_runs import devices_mesh, open_task, train
from mae_jax import checkpoints
from mae_jax.config import Config
from mae_jax.distributed import sharding
from mae_jax.train import step
from tests.helpers import tiny

__all__ = [
  "devices_mesh",
  "open_task",
  "params",
  "pretrained",
  "save",
  "steps",
  "steps_with_metrics",
  "train",
]


def pretrained(workdir: pathlib.Path, **sections: Any) -> pathlib.Path:
  """Writes a run of `tiny.config` with random parameters, without training."""
  config = tiny.config(**sections)
  params = tiny.random_params(tiny.shapes(config))
  return save(config, workdir, {"model": params})


def save(
  config: Config,
  workdir: pathlib.Path,
  params: Any,
  class_names: Sequence[str] = (),
) -> pathlib.Path:
  """Writes parameters by role as the first checkpoint of a run."""
  state = checkpoints.TrainState.create(
    params, {"model": np.zeros(1, np.float32)}
  )
  run = checkpoints.CheckpointMetadata(config, {}, class_names)
  with checkpoints.Checkpointer(
    workdir, checkpoints.Retention(1), run
  ) as writer:
    writer.save(1, state, wait=True)
  return workdir


def steps(
  config: Config, count: int, batch: Any = None, **mesh: int
) -> tuple[checkpoints.TrainState, np.ndarray]:
  """Returns the state after `count` train steps, and the loss of each."""
  state, values = steps_with_metrics(config, count, batch, **mesh)
  return state, np.asarray([each["loss"] for each in values])


def steps_with_metrics(
  config: Config, count: int, batch: Any = None, **mesh: int
) -> tuple[checkpoints.TrainState, list[dict[str, float]]]:
  """Returns the state after `count` train steps, and all metrics of each.

  Args:
    config: the run.
    count: number of steps.
    batch: the same batch for all steps; None for the task's own stream.
    **mesh: as in `devices_mesh`.
  """
  where = devices_mesh(**mesh)
  task, data = open_task(config, where)
  shapes = step.abstract_state(task)
  shardings = jax.tree.map(lambda x: x.sharding, shapes)
  state = jax.jit(task.init, out_shardings=shardings)()
  state = task.fit(state, data)
  stream = (
    iter(lambda: batch, 0) if batch is not None else task.train_batches(data, 0)
  )
  values = []
  with jax.set_mesh(where):
    train_step = step.jit_step(task.train_step, where, state)
    for _ in range(count):
      local = next(stream)
      placed = sharding.to_global(where, local, config.data.batch_size)
      state, found = train_step(state, placed)
      values.append({name: float(value) for name, value in found.items()})
  return state, values


def params(workdir: pathlib.Path, config: Config) -> Any:
  """Loads the parameters of the newest checkpoint to the host."""
  mesh = devices_mesh()
  shapes = step.abstract_state(open_task(config, mesh)[0])
  found, _ = checkpoints.load_any(workdir, mesh)
  checkpoints.check_shapes(workdir, found, shapes.params)
  return jax.device_get(found)
