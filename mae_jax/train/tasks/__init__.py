"""Tasks, one a file: the network, its train step and its evaluation."""

from __future__ import annotations

import importlib
from typing import Any

# The class of each task that has a train step. It is imported when it is used.
TASKS = {
  "pretrain": ("mae_jax.train.tasks.pretrain", "PretrainTask"),
  "finetune": ("mae_jax.train.tasks.finetune", "FinetuneTask"),
  "linprobe": ("mae_jax.train.tasks.linprobe", "LinprobeTask"),
}


def load(name: str) -> Any:
  """Returns the class of a task: a `base.Task`."""
  module, kind = TASKS[name]
  return getattr(importlib.import_module(module), kind)
