"""Training from Python, and what a run has left in its workdir."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from etils import epath

from mae_jax import checkpoints
from mae_jax.api import arguments, library, load, recipes
from mae_jax.api.model import Model
from mae_jax.config import Config, from_config_dict
from mae_jax.train import tasks
from mae_jax.train.best import BestEvaluation
from mae_jax.train.sinks import json_lines
from mae_jax.utils import (
  compile_cache,
  console,
  errors,
  extras,
  signals,
  storage,
)
from mae_jax.utils.errors import ConfigError

# Written by evals/standalone.py, whose import would need TensorFlow.
_EVALUATION = "evaluation.json"


class Curve(NamedTuple):
  """A metric over training.

  Attributes:
    steps: int [n].
    values: float [n]; NaN where a value was not finite.
  """

  steps: np.ndarray
  values: np.ndarray


class Run:
  """The workdir of a run: its settings, metrics and checkpoints.

  Attributes:
    workdir: the directory.

  Example:
    >>> import mae_jax
    >>> run = mae_jax.Run("runs/digits")  # doctest: +SKIP
    >>> run.metrics["loss"].values[-1]  # doctest: +SKIP
    0.0241
  """

  def __init__(self, workdir: str | os.PathLike[str]):
    """Opens a workdir that a run has written, or still writes.

    Raises:
      ConfigError: if it has no log of a run.
    """
    with library.quiet():
      self.workdir = arguments.path("workdir", workdir)
      self._log()

  @property
  def config(self) -> Config:
    """Settings of the newest checkpoint."""
    with library.quiet():
      return checkpoints.read_metadata(self.workdir).config

  @property
  def evaluation(self) -> dict[str, Any] | None:
    """Results of `task="evaluate"`, with "scalars" by name; None without."""
    path = epath.Path(self.workdir) / _EVALUATION
    with library.quiet(), storage.os_errors(self.workdir):
      if not path.exists():
        return None
      found: dict[str, Any] = json.loads(path.read_text())
    return found

  @property
  def metrics(self) -> dict[str, Curve]:
    """Each metric by name, as docs/reference/metrics.md lists them."""
    found: dict[str, list[tuple[int, float]]] = {}
    with library.quiet():
      lines = self._lines()
    for line in lines:
      step = line.pop("step")
      for name, value in line.items():
        number = float("nan") if value is None else value
        if isinstance(number, int | float):
          found.setdefault(name, []).append((step, number))
    return {
      name: Curve(*map(np.array, zip(*pairs, strict=True)))
      for name, pairs in found.items()
    }

  @property
  def steps(self) -> list[int]:
    """Steps of the checkpoints, in order."""
    with storage.os_errors(self.workdir):
      return checkpoints.saved_steps(self.workdir)

  @property
  def best_step(self) -> int | None:
    """The step of the best evaluation by `train.keep_best`.

    None before the first evaluation, or if `train.keep_best` is not set. It has
    a checkpoint, unless `train.keep_best` was another metric at that step.
    """
    best = BestEvaluation(self.config.train.keep_best)
    with library.quiet():
      best.resume(json_lines.evaluations(self._lines()))
    return best.step

  def model(self, step: int | None = None) -> Model:
    """Loads a checkpoint, of the last step by default.

    Raises:
      ConfigError: if there is no such checkpoint.
    """
    if step is None:
      return load.from_pretrained(self.workdir)
    if step not in self.steps:
      raise ConfigError(
        f"step={step} has no checkpoint in {self.workdir}: there are "
        f"{', '.join(map(str, self.steps)) or 'none'}"
      )
    path = os.path.join(self.workdir, "checkpoints", str(step))
    return load.from_pretrained(path)

  def report(self, out: str | os.PathLike[str] = "report.html") -> None:
    """Writes one HTML page with curves, pictures and settings.

    Raises:
      ConfigError: if the run or its log cannot be read.
    """
    from mae_jax.tools.report import command  # needs the extra "report"

    with library.quiet():
      command.write((self.workdir,), os.fspath(out), look_at=0)

  def _log(self) -> str:
    """Returns the whole lines of the log; "" for an evaluation."""
    path = epath.Path(self.workdir) / json_lines.NAME
    with storage.os_errors(self.workdir):
      if path.exists():
        # The last line may be one that is being written.
        return path.read_text().rpartition("\n")[0]
    if self.evaluation is None:
      raise ConfigError(
        f"workdir={self.workdir} has no metrics.jsonl: name the directory of a "
        "run"
      )
    return ""

  def _lines(self) -> list[dict[str, Any]]:
    found = []
    for number, line in enumerate(self._log().splitlines(), 1):
      try:
        record = json.loads(line)
        record["step"]
      except (ValueError, TypeError, KeyError):
        console.warn(
          f"{self.workdir}/metrics.jsonl: line {number} is damaged, and is "
          "left out"
        )
      else:
        found.append(record)
    return found

  def __repr__(self) -> str:
    return f"Run({self.workdir!r}, checkpoints at steps {self.steps})"


def train(
  config: Config | Mapping[str, Any] | str | os.PathLike[str],
  workdir: str | os.PathLike[str],
  *,
  changes: Mapping[str, Any] | None = None,
  on_metrics: Callable[[dict[str, Any]], None] | None = None,
  progress: bool = True,
) -> Run:
  """Trains or evaluates what a config says, or resumes an interrupted run.

  No signal handler is installed: Ctrl-C raises KeyboardInterrupt, and the same
  call resumes from the last checkpoint.

  Args:
    config: settings, or the name of a recipe.
    workdir: the directory for checkpoints, logs and pictures.
    changes: settings to change, as in `Config.replace`.
    on_metrics: called with each record that is logged: {"step": 50, "loss":
      0.3, ...}.
    progress: draw a progress bar on standard error.

  Returns:
    The run, for its metrics and its model.

  Raises:
    ConfigError: if something cannot work, before any step.
    TrainingError: if training cannot continue; what was learned is saved.
  """
  with library.quiet(progress=progress):
    chosen = _config(config)
    if changes is not None:
      chosen = chosen.replace(changes)
    path = arguments.path("workdir", workdir)
    if on_metrics is not None and not callable(on_metrics):
      raise ConfigError(
        f"on_metrics={errors.abbreviate(on_metrics)} cannot be called: give a "
        "function of a dict, as print"
      )
    if on_metrics is not None and chosen.task == "evaluate":
      raise ConfigError(
        "on_metrics is not called with task=evaluate, which logs nothing: read "
        "Run.evaluation"
      )
    devices = chosen.mesh.cpu_devices
    if devices and devices != jax.device_count():
      raise ConfigError(
        f"mesh.cpu_devices={devices}, but JAX has {jax.device_count()} "
        f"devices: call jax.config.update('jax_num_cpu_devices', {devices}) "
        "before JAX is used"
      )
    errors.require(extras.TRAIN, "train")
    storage.make_directory(path, "workdir")
    compile_cache.enable(chosen.train.compile_cache)
    run = tasks.runner(chosen.task)
    extra = {} if on_metrics is None else {"on_metrics": on_metrics}
    run(chosen, path, signals.StopSignals(), **extra)
  return Run(path)


def _config(given: Any) -> Config:
  """Returns the settings that `train` is given."""
  if isinstance(given, str | os.PathLike):
    return recipes.recipe(os.fspath(given))
  if isinstance(given, Mapping | ml_collections.ConfigDict):
    return from_config_dict(given)  # as a recipe's get_config returns it
  if not isinstance(given, Config):
    raise ConfigError(
      f"config={errors.abbreviate(given)} is a {type(given).__name__}: give "
      "mae_jax.recipe(NAME), or the name of a recipe"
    )
  return given
