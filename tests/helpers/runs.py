"""Short runs: whole ones, and their train step alone."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np

from mae_jax import checkpoints
from mae_jax.config import Config, EvalConfig, MeshConfig
from mae_jax.distributed import sharding
from mae_jax.train import loop, step, tasks
from mae_jax.train.run_data import RunData
from mae_jax.train.tasks.label_efficiency import LabelEfficiencyTask
from tests.helpers import tiny


def devices_mesh(devices: int = 1, fsdp: int = 1) -> jax.sharding.Mesh:
  """Returns a mesh of the first of the test's devices."""
  return sharding.make_mesh(MeshConfig(fsdp=fsdp), jax.devices()[:devices])


def open_task(
  config: Config, mesh: jax.sharding.Mesh, kind: Any = None
) -> tuple[Any, RunData]:
  """Opens a run's data and prepares its task, `kind` or that of the config."""
  kind = kind or (
    LabelEfficiencyTask
    if config.task == "label_efficiency"
    else tasks.load(config.task)
  )
  task = kind(config, mesh)
  data = RunData(config, mesh)
  task.prepare(data.info)
  return task, data


def train(config: Config, workdir: pathlib.Path, kind: Any = None, **mesh: int):
  """Runs the whole training loop; returns its report."""
  where = devices_mesh(**mesh)
  task, data = open_task(config, where, kind)
  return loop.run(task, data, config, where, workdir)


def pretrained(workdir: pathlib.Path) -> pathlib.Path:
  """Trains any network for three steps; returns its workdir."""
  config = tiny.config(
    train={"length": "3 steps"},
    eval=EvalConfig(images=0),
    data={"eval_split": ""},
  )
  train(config, workdir)
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
  state = task.fit(state, task.train_batches(data, 0))
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
  return jax.device_get(checkpoints.load_params(workdir, shapes.params))
