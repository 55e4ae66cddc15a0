"""Sinks: places that a run's scalars and pictures go to.

`metrics.Writer` sends each record to every sink of the run: `json_lines` and
`tensorboard` always, `callback` for Python callers, and the trackers of
`train.trackers`. A new tracker is a class and a row in `trackers.TRACKERS`.
"""

from typing import Protocol

import numpy as np


class Sink(Protocol):
  """A place for records, in the order of their steps."""

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """Records scalars, which may be NaN."""

  def image(self, step: int, name: str, pixels: np.ndarray) -> None:
    """Records a picture: [H, W, 3] uint8."""

  def flush(self) -> None:
    """Makes records durable that a checkpoint must not precede.

    Raises:
      OSError: if that fails; the records stay in memory.
    """

  def abandon(self) -> None:
    """Discards what is not written, because another run owns the workdir."""

  def close(self, *, finished: bool) -> None:
    """Ends the sink; `finished` if the run took its last step."""
