"""Starts runs and tasks in this process, for tests and benchmarks."""

from __future__ import annotations

import pathlib
from typing import Any

import jax

from mae_jax.config import Config, MeshConfig
from mae_jax.distributed import sharding
from mae_jax.train import loop, tasks
from mae_jax.train.run_data import RunData
from mae_jax.train.tasks.label_efficiency import LabelEfficiencyTask


def devices_mesh(devices: int = 1, fsdp: int = 1) -> jax.sharding.Mesh:
  """Returns a mesh of the first devices of this process."""
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
