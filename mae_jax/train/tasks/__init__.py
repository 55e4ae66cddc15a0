"""Tasks, one a file: the network, its train step and its evaluation."""

import pkgutil
from typing import Any

from mae_jax.config import TASKS


def load(name: str) -> Any:
  """Imports the class of a task in TASKS, a `base.Task`."""
  return pkgutil.resolve_name(TASKS[name])
