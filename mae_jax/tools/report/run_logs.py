"""Reads a workdir: logs, pictures, settings and environment of a run."""

import dataclasses
import json
import math
import os
import reprlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from etils import epath

from mae_jax import checkpoints
from mae_jax.checkpoints import workdir as workdirs
from mae_jax.config import Config, from_config_dict, overrides
from mae_jax.train import best as best_lib
from mae_jax.train import run_info
from mae_jax.train.sinks import json_lines, tensorboard
from mae_jax.utils import storage
from mae_jax.utils.errors import ConfigError

# Settings that name a file or directory; a recipe can have arguments.
_PATHS = (
  "label_efficiency.pretrain",
  "data.data_dir",
  "data.path",
  "init_from",
  "train.compile_cache",
)

_EVALUATION = "evaluation.json"
_NO_RUNS = ("checkpoints", "tensorboard", "profile")


@dataclasses.dataclass(frozen=True)
class RunLogs:
  """The logs of a run, finished or not.

  Attributes:
    name: the workdir.
    records: records of metrics.jsonl, in the order of steps.
    pictures: PNG files by tag and step.
    config: the settings; None if they are not known.
    recipe: the config file to compare with; None if it is not known.
    started: the content of about.json, which describes the last start.
    status: finished, ended early, running, stopped or evaluation; "" if it is
      not known.
    best: the best evaluation, by `train.keep_best`; None if no metric is
      followed.
  """

  name: str
  records: list[dict[str, Any]]
  pictures: dict[str, dict[int, bytes]]
  config: Config | None
  recipe: str | None
  started: Mapping[str, Any]
  status: str = ""
  best: best_lib.BestEvaluation | None = None

  @property
  def step(self) -> int:
    """The last logged step; 0 if there is none."""
    return self.records[-1]["step"] if self.records else 0

  @property
  def seconds(self) -> float | None:
    """Seconds of training, over all starts; None if they are not logged.

    Each start counts its own seconds, without compiling and evaluations.
    """
    total = last = 0.0
    for value in self.series("seconds")[1]:
      if value is not None:
        total += last if value < last else 0
        last = value
    return total + last or None

  def series(self, key: str) -> tuple[list[int], list[float | None]]:
    """Returns the steps and values of a scalar."""
    pairs = [(x["step"], x[key]) for x in self.records if key in x]
    return [step for step, _ in pairs], [value for _, value in pairs]

  def last(self, key: str) -> float | None:
    """Returns the last value of a scalar."""
    _, values = self.series(key)
    return values[-1] if values else None

  @property
  def values(self) -> dict[str, float]:
    """The last value of each scalar."""
    found = {key: x for record in self.records for key, x in record.items()}
    return {key: value for key, value in found.items() if value is not None}

  def directory(self) -> str:
    """Returns the directory the run started in, or the current one."""
    command, recipe = self.started.get("command"), self.started.get("recipe")
    if isinstance(command, list) and isinstance(recipe, str):
      named = overrides.recipe_of([str(word) for word in command]) or ""
      tail = os.path.join("", os.path.normpath(named))
      if not os.path.isabs(named) and recipe.endswith(f"/{tail}"):
        return recipe.removesuffix(tail)
    return os.getcwd()


def read(workdir: str, recipe: str | None = None) -> RunLogs:
  """Reads the workdir of a run, finished or not.

  Args:
    workdir: the directory, on a disk or in a bucket.
    recipe: a config file as in --config; None for the one the run started
      with.

  Raises:
    ConfigError: if there is no run, or a line of its log is damaged.
  """
  path = storage.absolute(workdir)
  log = path / json_lines.NAME
  with storage.os_errors(path):
    _check(workdir, path)
    if not log.exists():
      return _evaluation(workdir, path)
    found = records(log)
    if not found:
      raise ConfigError(
        f"--workdir={workdir} has not logged a step yet: wait for the first"
      )
    pictures = _pictures(path / "tensorboard")
  started = run_info.read(path)
  config = _config(path, started)
  return RunLogs(
    os.fspath(workdir).rstrip("/"),
    found,
    pictures,
    config,
    recipe or started.get("recipe"),
    started,
    status(path, config, found, started.get("total_steps")),
    _best(config, found),
  )


class _HasValues(Protocol):
  @property
  def values(self) -> Mapping[str, float]: ...


def sort[Run: _HasValues](runs: Sequence[Run], metric: str) -> list[Run]:
  """Sorts runs by the last value of a metric, the best first.

  Raises:
    ConfigError: if no run has this metric.
  """
  known = dict.fromkeys(key for run in runs for key in run.values)
  if metric not in known:
    raise ConfigError(
      f"--sort={metric}: no run has this metric; there are "
      f"{', '.join(sorted(known))}"
    )
  sign = best_lib.sign(metric)
  return sorted(
    runs, key=lambda run: -sign * run.values.get(metric, -sign * math.inf)
  )


def find(workdir: str) -> list[str]:
  """Returns the workdir, or the runs below it if it holds runs instead."""
  path = storage.absolute(workdir)
  with storage.os_errors(path):
    is_run = any((path / x).exists() for x in (json_lines.NAME, _EVALUATION))
    if is_run or not path.is_dir():
      return [workdir]
    return [str(each) for each in search(path)] or [workdir]


def search(path: epath.Path, depth: int = 4) -> Iterator[epath.Path]:
  """Finds the runs in a directory, and in those below it."""
  if (path / json_lines.NAME).exists():
    yield path
  if depth:
    for each in sorted(path.iterdir()):
      if each.name not in _NO_RUNS and each.is_dir():
        yield from search(each, depth - 1)


def status(
  path: epath.Path,
  config: Config | None,
  found: Sequence[dict[str, Any]],
  total: Any,
) -> str:
  """Says whether a run is finished, ended early, running or stopped.

  Args:
    path: the workdir.
    config: the settings; None if they are not known.
    found: the records of its log.
    total: the number of its steps; the status is "" if that is no int.
  """
  if not isinstance(total, int):
    return ""
  if workdirs.is_running(path):
    return "running"
  if found[-1]["step"] >= total:
    return "finished"
  best = _best(config, found)
  return "ended early" if best is not None and best.exhausted else "stopped"


def _best(
  config: Config | None, found: Sequence[dict[str, Any]]
) -> best_lib.BestEvaluation | None:
  if config is None or not config.train.keep_best:
    return None
  best = best_lib.BestEvaluation(config.train.keep_best, config.train.patience)
  best.resume(json_lines.evaluations(found))
  return best


def _evaluation(workdir: str, path: epath.Path) -> RunLogs:
  """Reads the results of task=evaluate, which are those of one step."""
  try:
    content = json.loads((path / _EVALUATION).read_bytes())
    files, values = content["files"], content["scalars"]
  except (ValueError, KeyError, TypeError):
    raise ConfigError(
      f"--workdir={workdir}: {_EVALUATION} is damaged: evaluate again"
    ) from None
  step = os.path.basename(str(content.get("checkpoint", "")))
  scalars = {name: _finite(value) for name, value in values.items()}
  pictures = [name for name in files if name.endswith(".png")]
  number = int(step) if step.isdigit() else 0
  return RunLogs(
    os.fspath(workdir).rstrip("/"),
    [{"step": number} | scalars],
    {
      name.removesuffix(".png"): {number: (path / name).read_bytes()}
      for name in pictures
    },
    None,
    None,
    {},
    "evaluation",
  )


def recipe_config(run: RunLogs) -> Config | None:
  """Returns the settings of a run's recipe; None if it cannot be loaded."""
  if run.recipe is None:
    return None
  try:
    return overrides.recipe(run.recipe)
  except ConfigError:
    return None


def same(key: str, values: Sequence[tuple[Any, str]]) -> bool:
  """Checks whether values of a setting are equal, or name the same file.

  Each value comes with the directory that relative paths start from.
  """
  first, _ = values[0]
  if all(value == first for value, _ in values):
    return True
  if key not in _PATHS or not all(value for value, _ in values):
    return False
  return len({_absolute(*each) for each in values}) == 1


def _absolute(text: str, directory: str) -> str:
  if storage.is_remote(text):
    return text
  path, colon, arguments = text.partition(":")
  path = os.path.join(directory, os.path.expanduser(path))
  return f"{os.path.realpath(path)}{colon}{arguments}"


def _check(workdir: str, path: epath.Path) -> None:
  """Raises ConfigError if the directory does not belong to a run."""
  if not path.exists():
    raise ConfigError(f"--workdir={workdir}: there is no such directory")
  if not path.is_dir():
    raise ConfigError(
      f"--workdir={workdir} is a file: give the directory of a run"
    )
  if (path / json_lines.NAME).exists():
    return
  if (path / _EVALUATION).exists():
    return
  raise ConfigError(
    f"--workdir={workdir} has no metrics.jsonl: give the directory of a "
    "run, or wait until it has logged a step"
  )


def records(log: epath.Path) -> list[dict[str, Any]]:
  """Reads metrics.jsonl; a value that is not finite is None.

  Raises:
    ConfigError: if a line other than the last one is damaged.
  """
  found = []
  *lines, rest = log.read_bytes().split(b"\n")
  for number, line in enumerate([*lines, rest], 1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
      problem = _problem(record)
    except (ValueError, RecursionError) as error:
      # The last line of an active or interrupted run can be incomplete.
      if number > len(lines):
        break
      problem = str(error)
    if problem:
      raise ConfigError(
        f"{log} line {number} is not a record of this project ({problem}): "
        "remove this line, not the file"
      )
    found.append(
      {
        key: value if key == "step" else _finite(value)
        for key, value in record.items()
      }
    )
  return found


def _problem(record: Any) -> str | None:
  """Returns what is wrong with a record; None if it is valid."""
  if not isinstance(record, dict):
    return f"it is {reprlib.repr(record)}, not a step with its values"
  if "step" not in record:
    return "it has no step"
  step = record["step"]
  if not isinstance(step, int) or isinstance(step, bool) or step < 0:
    return f"its step is {reprlib.repr(step)}, not a whole number"
  for key, value in record.items():
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not number:
      return f"{key} is {reprlib.repr(value)}, not a number"
  return None


def _finite(value: float | None) -> float | None:
  """Returns a finite number as it is, else None, as the log has it."""
  if value is None or abs(value) > sys.float_info.max or math.isnan(value):
    return None
  return float(value)


def _pictures(directory: epath.Path) -> dict[str, dict[int, bytes]]:
  found: dict[str, dict[int, bytes]] = {}
  if not directory.is_dir():
    return found
  for path in sorted(directory.iterdir()):
    if ".tfevents." not in path.name:
      continue
    for _, event in tensorboard.events(path.read_bytes()):
      for value in event.summary.value:
        if value.HasField("image"):
          steps = found.setdefault(value.tag, {})
          steps[event.step] = value.image.encoded_image_string
  return found


def _config(workdir: epath.Path, started: Mapping[str, Any]) -> Config | None:
  try:
    if "config" in started:
      return from_config_dict(started["config"], stored=True)
    return checkpoints.read_metadata(workdir).config
  except ConfigError:  # another version, or no checkpoint yet
    return None
