"""Summarizes the data of a run for its report."""

import numpy as np

from mae_jax.config import DataConfig
from mae_jax.tools.report import page, run_logs
from mae_jax.utils.errors import ConfigError, TrainingError

_COUNTS = {
  "unreadable": "unreadable training images, replaced",
  "eval_unreadable": "unreadable held-out images",
  "skipped": "steps skipped because a value was not finite",
  "loss_spikes": "loss spikes",
}


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
