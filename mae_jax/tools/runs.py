"""Lists the runs below a directory: `python -m mae_jax runs --workdir=runs`."""

import datetime
from collections.abc import Iterator
from typing import Any, NamedTuple

from etils import epath

from mae_jax.config import Config, from_config_dict
from mae_jax.tools import cli
from mae_jax.tools.report import run_logs
from mae_jax.train import run_info
from mae_jax.train.sinks import json_lines
from mae_jax.utils import console, storage, tables
from mae_jax.utils.errors import ConfigError, printable


class Row(NamedTuple):
  """A run in the list.

  Attributes:
    name: the workdir, from the directory that was searched.
    task: what the run does; "" if it is not known.
    status: finished, ended early, running or stopped; "" if it is not known.
    step: the last logged step, and the last step of the run if it is known.
    updated: when the last line was logged.
    values: the last value of each metric.
  """

  name: str
  task: str
  status: str
  step: str
  updated: str
  values: dict[str, float]


def show(
  workdir: cli.Paths,
  *,
  sort: str = "",
  metrics: cli.Words = ("loss", "eval_loss", "eval_top1"),
) -> None:
  """Lists runs with their status, step and last metrics.

  Args:
    workdir: directories, as a,b,c, in which runs are searched, four levels
      deep.
    sort: a metric: the best run comes first. Losses are better if lower, other
      metrics if higher. By default the runs are in the order of their names.
    metrics: the metrics to show, as a,b,c.

  Raises:
    ConfigError: if there is no run, or no run has the metric `sort`.
  """
  rows = [row for each in workdir for row in _rows(each)]
  if not rows:
    raise ConfigError(
      f"--workdir={','.join(workdir)} has no run, which is a directory with "
      f"{json_lines.NAME}: name the directory that holds the runs"
    )
  if sort:
    rows = run_logs.sort(rows, sort)
  names = dict.fromkeys((*metrics, *[sort] * bool(sort)))
  shown = [name for name in names if any(name in row.values for row in rows)]
  header = ("run", "task", "status", "step", *shown, "updated")
  cells = [
    (
      row.name,
      row.task,
      row.status,
      row.step,
      *(_number(row.values.get(name)) for name in shown),
      row.updated,
    )
    for row in rows
  ]
  console.info(tables.markdown(cells, header))


def _rows(given: str) -> Iterator[Row]:
  root = storage.absolute(given)
  with storage.os_errors(root):
    if not root.is_dir():
      raise ConfigError(f"--workdir={given} is not a directory")
    for path in run_logs.search(root):
      try:
        name = path.name if path == root else str(path.relative_to(root))
        yield _row(path, name)
      except ConfigError as error:
        console.warn(f"{path} is left out: {error}")


def _row(path: epath.Path, name: str) -> Row:
  records = run_logs.records(path / json_lines.NAME)
  if not records:
    return Row(printable(name), "", "no step yet", "", "", {})
  about = run_info.read(path)
  total = about.get("total_steps")
  config = _config(about)
  last = records[-1]
  values = {key: x for each in records for key, x in each.items()}
  stamp = last.get("timestamp") or (path / json_lines.NAME).stat().mtime
  updated = datetime.datetime.fromtimestamp(stamp)
  return Row(
    printable(name),
    config.task if config else "",
    run_logs.status(path, config, records, total),
    f"{last['step']}/{total}" if isinstance(total, int) else str(last["step"]),
    f"{updated:%Y-%m-%d %H:%M}",
    {key: value for key, value in values.items() if value is not None},
  )


def _config(about: dict[str, Any]) -> Config | None:
  try:
    return from_config_dict(about.get("config", {}), stored=True)
  except ConfigError:
    return None


def _number(value: float | None) -> str:
  return "" if value is None else f"{value:.4g}"
