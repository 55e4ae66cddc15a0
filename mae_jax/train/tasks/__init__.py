"""Tasks, one a file: the network, its train step and its evaluation."""

from __future__ import annotations

import importlib
from typing import Any

from mae_jax.config import TASKS


def load(name: str) -> Any:
  """Imports the class of a task in TASKS, a `base.Task`."""
  module, _, kind = TASKS[name].partition(":")
  return getattr(importlib.import_module(module), kind)
