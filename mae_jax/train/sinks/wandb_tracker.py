"""Weights & Biases, online, or offline with WANDB_MODE=offline."""

import os
import secrets

import numpy as np
import wandb

from mae_jax.train.sinks import trackers


class Wandb:
  """A run of Weights & Biases."""

  def __init__(self, run: trackers.TrackedRun):
    """Starts a run, or continues it.

    A step is sent once: wandb refuses steps below the last one.
    """
    self.id = run.id or secrets.token_hex(4)
    # Files go to WORKDIR/wandb. The progress bar is not captured.
    self._run = wandb.init(
      project=run.project,
      id=self.id,
      name=run.name,
      config=run.settings,
      dir=os.environ.get("WANDB_DIR") or run.directory,
      resume="allow",
      allow_val_change=True,
      reinit="create_new",
      settings=wandb.Settings(console="off", silent=True),
    )
    if self._run.offline:
      self.where = f"`wandb sync {os.path.dirname(self._run.dir)}`"
    else:
      self.where = self._run.url or self.id

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """Sends scalars."""
    self._run.log(values, step=step)

  def image(self, step: int, name: str, pixels: np.ndarray) -> None:
    """Sends a picture."""
    self._run.log({name: wandb.Image(pixels)}, step=step)

  def close(self, *, finished: bool) -> None:
    """Sends all that waits, and ends the run."""
    self._run.finish(exit_code=0 if finished else 1)
