"""Trackio, which stores runs in TRACKIO_DIR and shows them in a browser."""

import secrets

import numpy as np
import trackio

from mae_jax.train.sinks import trackers


class Trackio:
  """A run of Trackio."""

  def __init__(self, run: trackers.TrackedRun):
    """Starts a run, or continues it; Trackio knows runs by their names."""
    self.id = run.id or f"{run.name}-{secrets.token_hex(4)}"
    self._run = trackio.init(
      project=run.project,
      name=self.id,
      config=run.settings,
      resume="allow",
      embed=False,
    )
    self.where = f"`trackio show --project {run.project}`"

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """Sends scalars."""
    self._run.log(values, step=step)

  def image(self, step: int, name: str, pixels: np.ndarray) -> None:
    """Sends a picture."""
    self._run.log({name: trackio.Image(pixels)}, step=step)

  def close(self, *, finished: bool) -> None:
    """Sends all that waits, and ends the run."""
    self._run.finish()
