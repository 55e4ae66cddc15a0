"""MLflow: the server or local store that MLFLOW_TRACKING_URI names.

Without that variable MLflow writes to mlflow.db in the current directory.
"""

import time

import mlflow
import numpy as np
from mlflow.entities import Metric, Param

from mae_jax.train.sinks import trackers

_PARAMS = 100  # that a request may have
_LENGTH = 500  # of a parameter that every server accepts


class Mlflow:
  """A run of MLflow, in the experiment of the project's name."""

  def __init__(self, run: trackers.TrackedRun):
    """Starts a run, or continues it."""
    self._client = mlflow.MlflowClient()
    if run.id:
      self._client.update_run(run.id, status="RUNNING")
      self.id = run.id
    else:
      found = self._client.get_experiment_by_name(run.project)
      experiment = (
        found.experiment_id
        if found
        else self._client.create_experiment(run.project)
      )
      created = self._client.create_run(experiment, run_name=run.name)
      self.id = created.info.run_id
      # Parameters never change: a continued run keeps those of its start.
      params = [Param(k, v[:_LENGTH]) for k, v in run.settings.items()]
      for start in range(0, len(params), _PARAMS):
        some = params[start : start + _PARAMS]
        self._client.log_batch(self.id, params=some)
    self.where = f"run {self.id} at {mlflow.get_tracking_uri()}"

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """Sends scalars in one request."""
    now = int(time.time() * 1000)
    metrics = [Metric(k, v, now, step) for k, v in values.items()]
    self._client.log_batch(self.id, metrics=metrics)

  def image(self, step: int, name: str, pixels: np.ndarray) -> None:
    """Sends a picture."""
    self._client.log_image(self.id, pixels, key=name, step=step)

  def close(self, *, finished: bool) -> None:
    """Ends the run."""
    status = "FINISHED" if finished else "KILLED"
    self._client.set_terminated(self.id, status)
