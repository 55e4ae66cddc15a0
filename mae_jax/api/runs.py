"""Training from Python, and what a run has left in its workdir."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from mae_jax import checkpoints
from mae_jax.api import library, load, recipes
from mae_jax.api.model import Model
from mae_jax.config import Config
from mae_jax.train import tasks
from mae_jax.utils import compile_cache, errors, extras, signals, storage
from mae_jax.utils.errors import ConfigError


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
    self.workdir = os.path.expanduser(os.fspath(workdir))
    with library.quiet():
      self._lines()

  @property
  def config(self) -> Config:
    """Settings of the newest checkpoint."""
    with library.quiet():
      return checkpoints.read_metadata(self.workdir).config

  @property
  def metrics(self) -> dict[str, Curve]:
    """Each metric by name, as docs/metrics.md lists them."""
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
      folder = epath.Path(self.workdir) / "checkpoints"
      names = (
        [each.name for each in folder.iterdir()] if folder.exists() else []
      )
    return sorted(int(name) for name in names if name.isdigit())

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

  def _lines(self) -> list[dict[str, Any]]:
    path = epath.Path(self.workdir) / "metrics.jsonl"
    with storage.os_errors(self.workdir):
      if not path.exists():
        raise ConfigError(
          f"workdir={self.workdir} has no metrics.jsonl: name the directory of "
          "a run"
        )
      # The last line may be one that is being written.
      text = path.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in text.splitlines()]

  def __repr__(self) -> str:
    return f"Run({self.workdir!r}, checkpoints at steps {self.steps})"


def train(
  config: Config | str,
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
  chosen = recipes.recipe(config) if isinstance(config, str) else config
  path = os.path.expanduser(os.fspath(workdir))
  with library.quiet(progress=progress):
    if changes:
      chosen = chosen.replace(changes)
    if not path:
      raise ConfigError("workdir is empty: give a directory")
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
