"""The command `python -m mae_jax report --workdir=a,b,c --out=report.html`."""

import os

import numpy as np

from mae_jax.config import DataConfig, overrides
from mae_jax.tools import cli
from mae_jax.tools.report import page, run_logs
from mae_jax.utils import atomic_write, console
from mae_jax.utils.errors import ConfigError, TrainingError

_COUNTS = {
  "unreadable": "unreadable training images, replaced",
  "eval_unreadable": "unreadable held-out images",
  "skipped": "steps skipped because a value was not finite",
  "loss_spikes": "loss spikes",
}


def write(
  workdir: cli.Paths,
  out: cli.Path = "report.html",
  *,
  sort: str = "",
  recipe: cli.Path | None = None,
  look_at: int = 300,
) -> None:
  """Writes one HTML page about one or more runs.

  The page has curves, pictures over training, data, settings and environment,
  and works offline.

  Args:
    workdir: the directory of a run, of an evaluation (task=evaluate), or one
      that holds runs; or several as a,b,c, which share charts.
    out: the .html file, which is replaced.
    sort: a metric, as eval_top1: the best run comes first. Losses are better if
      lower, other metrics if higher.
    recipe: settings are compared with this recipe, for instance
      vit_b; by default with the one that started each run.
    look_at: training images to read, for mean and std beside the configured
      ones; 0 for none.

  Raises:
    ConfigError: if there is no such run; `out` is unchanged.
  """
  atomic_write.check_suffix(out, ".html")
  cli.at_least("look_at", look_at, 0)
  if recipe is not None:
    overrides.recipe(recipe)  # raises if there is no such recipe
  if not all(each.strip() for each in workdir):
    raise ConfigError(
      f"--workdir={','.join(workdir)} has an empty name"
      + (" in its list" if len(workdir) > 1 else "")
      + ": name the directory of a run, or of several as a,b,c"
    )
  if len(set(map(os.path.realpath, workdir))) < len(workdir):
    raise ConfigError(f"--workdir={','.join(workdir)} names a run twice")
  with atomic_write.atomic_file(out) as file:
    found = [
      run_logs.read(run, recipe)
      for each in workdir
      for run in run_logs.find(each)
    ]
    if sort:
      found = run_logs.sort(found, sort)
    names = page.short_names([run.name for run in found])
    summaries = [
      summarize(run, name, look_at)
      for run, name in zip(found, names, strict=True)
    ]
    file.write(page.render(found, summaries).encode())
  console.info(f"{out}: {', '.join(names)}; open it in a browser")


def summarize(
  run: run_logs.RunLogs, name: str, look_at: int
) -> page.DataSummary:
  """Summarizes counters of the log and, if the data are here, some images.

  `look_at` is the number of images to read, 0 for none.
  """
  rows = [
    (text, f"{value:,.0f}")
    for key, text in _COUNTS.items()
    if (value := run.last(key)) is not None
  ]
  warnings = [f"{text} {name}" for name, text in rows if text != "0"]
  if run.config is None:
    return page.DataSummary(name, rows, warnings)
  data = run.config.data
  rows.append(("mean, configured", _numbers(data.mean)))
  rows.append(("std, configured", _numbers(data.std)))
  if look_at:
    try:
      more, found = _read_images(data, look_at)
    except (ConfigError, TrainingError) as error:
      rows.append(("images", f"not read: {error}"))
    else:
      rows += more
      warnings += found
  return page.DataSummary(name, rows, warnings)


def _read_images(
  data: DataConfig, number: int
) -> tuple[list[tuple[str, str]], list[str]]:
  # TensorFlow takes seconds to import.
  from mae_jax.data import sources
  from mae_jax.tools import inspect_data

  source = sources.open_source(data, "train")
  found, _ = inspect_data.look(source, number, data)
  rows = [
    ("training images", f"{source.num_examples:,}"),
    ("images read", f"{found.num_images:,}"),
    ("unreadable", f"{len(found.unreadable.names):,}"),
  ]
  if len(found.sizes):
    middle = np.median(found.sizes, axis=0).astype(int)
    rows += [
      ("height x width, median", f"{middle[0]} x {middle[1]}"),
      ("mean, measured", _numbers(found.mean)),
      ("std, measured", _numbers(found.std)),
    ]
  return rows, inspect_data.warnings(found, data, source.class_names)


def _numbers(values: np.ndarray | tuple[float, ...]) -> str:
  return ", ".join(f"{value:.4f}" for value in values)
