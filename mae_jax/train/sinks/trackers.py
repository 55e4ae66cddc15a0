"""Experiment trackers: Weights & Biases, MLflow and Trackio.

A tracker may be a server on a network that fails. So each one works in its own
thread: training never waits for it, and its errors are warnings. The id of its
run is stored in the workdir, so that a resumed run continues it.
"""

import contextvars
import dataclasses
import importlib
import json
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
from etils import epath

from mae_jax.config import Config, leaves
from mae_jax.train.sinks import Sink, json_lines
from mae_jax.utils import console, errors, storage
from mae_jax.utils.errors import ConfigError

# The module and the class of each. A class is imported when it is chosen.
TRACKERS = {
  "mlflow": "mae_jax.train.sinks.mlflow_tracker:Mlflow",
  "trackio": "mae_jax.train.sinks.trackio_tracker:Trackio",
  "wandb": "mae_jax.train.sinks.wandb_tracker:Wandb",
}
IDS = "trackers.json"
# A cluster kills a process some time after SIGTERM; all is saved by then.
CLOSE_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class TrackedRun:
  """The facts about a run that a tracker shows.

  Attributes:
    project: the group of runs that it belongs to.
    name: the workdir's name.
    directory: the workdir, for files of the tracker; None if in a bucket.
    settings: the settings of the run by full name, as text.
    id: the tracker's name for the run, if it was tracked before.
  """

  project: str
  name: str
  directory: str | None
  settings: dict[str, str]
  id: str | None


class Tracker(Protocol):
  """A run at a tracker; methods may raise any error.

  Attributes:
    id: the tracker's name for the run, to continue it later.
    where: the address of the run's page, or another hint where it is.
  """

  id: str
  where: str

  def __init__(self, run: TrackedRun) -> None: ...

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """Sends scalars."""

  def image(self, step: int, name: str, pixels: np.ndarray) -> None:
    """Sends a picture."""

  def close(self, *, finished: bool) -> None:
    """Sends all that waits, and ends the run."""


def check(config: Config) -> None:
  """Checks that the packages of `train.trackers` are installed.

  Raises:
    ConfigError: if one is not; it names the extra.
  """
  errors.require(config.train.trackers)


def open_all(config: Config, workdir: epath.Path) -> list[Sink]:
  """Starts the trackers of `train.trackers`, or continues their runs.

  Args:
    config: settings of the run.
    workdir: directory of the run; its metrics.jsonl was opened before.

  Raises:
    ConfigError: if a new run cannot be started at a tracker. If an earlier one
      cannot be continued, that is a warning.
  """
  if not config.train.trackers:
    return []
  ids = _read_ids(workdir / IDS)
  sent = frozenset(
    (int(record["step"]), key)
    for record in json_lines.removed(workdir)
    for key in record
  )
  opened: list[Sink] = []
  for name in dict.fromkeys(config.train.trackers):
    run = TrackedRun(
      project=config.train.project,
      name=workdir.name or "run",
      directory=None if storage.is_remote(workdir) else str(workdir),
      settings={key: str(value) for key, value in leaves(config)},
      id=ids.get(name),
    )
    tracker = _open(name, run)
    if tracker is None:
      continue
    opened.append(Background(name, tracker, sent if run.id else frozenset()))
    ids[name] = tracker.id
    storage.write_atomic(workdir / IDS, json.dumps(ids, indent=2).encode())
    verb = "continues" if run.id else "tracks"
    console.info(f"{name} {verb} this run: {tracker.where}")
  return opened


def _open(name: str, run: TrackedRun) -> Tracker | None:
  module, _, kind = TRACKERS[name].partition(":")
  try:
    tracker: Tracker = getattr(importlib.import_module(module), kind)(run)
    return tracker
  except Exception as error:  # of any type: this is another program
    missing = errors.missing_extra(error)
    if missing:
      raise missing from error
    reason = f"{type(error).__name__}: {console.first_line(error)}"
    if run.id is None:
      raise ConfigError(
        f"{name} cannot start ({reason}): check its login and server, use its "
        "offline mode, or leave it out of train.trackers"
      ) from error
    console.warn(f"{name} does not continue run {run.id} ({reason})")
    return None


def _read_ids(path: epath.Path) -> dict[str, str]:
  try:
    with storage.os_errors(path):
      ids = json.loads(path.read_bytes()) if path.exists() else {}
    if all(isinstance(value, str) for value in ids.values()):
      return dict(ids)
  except (ValueError, AttributeError):
    pass
  raise ConfigError(
    f"{path} does not have the ids of trackers: delete it to start new runs"
  )


class Background:
  """A sink that sends records to a tracker in a thread of its own.

  A record that fails is lost, with one warning; later ones are tried again.
  """

  def __init__(
    self,
    name: str,
    tracker: Tracker,
    sent: Iterable[tuple[int, str]] = (),
  ):
    """Starts the thread.

    Args:
      name: the tracker's name, for messages.
      tracker: where records go.
      sent: steps and names of scalars that the tracker has already.
    """
    self._name, self._tracker = name, tracker
    self._sent = frozenset(sent)
    self._calls: queue.SimpleQueue[Callable[[], None] | None] = (
      queue.SimpleQueue()
    )
    self._lost = 0
    self._abandoned = False
    # Its warnings go where those of the caller go.
    context = contextvars.copy_context()
    self._thread = threading.Thread(
      target=context.run,
      args=(self._work,),
      name=f"tracker {name}",
      daemon=True,
    )
    self._thread.start()

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """Sends the scalars that an earlier start has not sent."""
    new = {k: v for k, v in values.items() if (step, k) not in self._sent}
    if new:
      self._calls.put(lambda: self._tracker.scalars(step, new))

  def image(self, step: int, name: str, pixels: np.ndarray) -> None:
    """Sends a picture, unless an earlier start has sent its evaluation."""
    if (step, "eval_seconds") not in self._sent:
      self._calls.put(lambda: self._tracker.image(step, name, pixels))

  def flush(self) -> None:
    """Does not wait: a checkpoint must not depend on a network."""

  def abandon(self) -> None:
    """Sends nothing more, and leaves the run to the other process."""
    self._abandoned = True

  def close(self, *, finished: bool) -> None:
    """Sends what waits, for CLOSE_SECONDS at most, and ends the run."""
    if not self._abandoned:
      self._calls.put(lambda: self._tracker.close(finished=finished))
    self._calls.put(None)
    self._thread.join(CLOSE_SECONDS)
    if self._thread.is_alive():
      console.warn(
        f"{self._name} was given up after {CLOSE_SECONDS:g} s: it may lack the "
        "last records, which metrics.jsonl has"
      )
    elif self._lost:
      console.warn(f"{self._name} lacks {self._lost} record(s)")

  def _work(self) -> None:
    while (call := self._calls.get()) is not None:
      if self._abandoned:
        continue
      try:
        call()
      except Exception as error:  # of any type: this is another program
        if not self._lost:
          console.warn(
            f"{self._name} failed ({type(error).__name__}: "
            f"{console.first_line(error)}): training continues, and "
            "metrics.jsonl has all records"
          )
        self._lost += 1
