"""Tasks, one a file: the network, its train step and its evaluation."""

import functools
import pkgutil
from collections.abc import Callable
from typing import Any

from mae_jax.config import TASKS

# Tasks that are no `base.Task` trained by the loop: the function of each, from
# config, workdir and stop signals.
OTHERS = {
  "label_efficiency": "mae_jax.train.tasks.label_efficiency:run",
  "evaluate": "mae_jax.evals.standalone:run",
}


def load(name: str) -> Any:
  """Imports the class of a task in TASKS, a `base.Task`."""
  return pkgutil.resolve_name(TASKS[name])


def runner(name: str) -> Callable[..., None]:
  """Imports what runs a task: a function of config, workdir and StopSignals.

  A task is imported when it is chosen: that imports TensorFlow, which takes
  seconds, and a wrong setting should be reported before.
  """
  if name in OTHERS:
    other: Callable[..., None] = pkgutil.resolve_name(OTHERS[name])
    return other
  train = pkgutil.resolve_name("mae_jax.train.loop:train")
  return functools.partial(train, load(name))
