"""A function of a Python caller, such as `print`, as a sink."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

OnMetrics: TypeAlias = Callable[[dict[str, float]], None]


class Callback:
  """A sink that calls a function with each record: `{"step": 50, ...}`.

  What the function raises ends the run.
  """

  def __init__(self, function: OnMetrics):
    """Keeps the function."""
    self._function = function

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """Calls the function with a dict of its own."""
    self._function({"step": step, **values})

  def image(self, step: int, name: str, pixels: np.ndarray) -> None:
    """Leaves pictures to other sinks."""

  def flush(self) -> None:
    """Has nothing to write."""

  def abandon(self) -> None:
    """Has nothing to discard."""

  def close(self, *, finished: bool) -> None:
    """Has nothing to end."""
