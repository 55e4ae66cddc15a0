"""What a report says of the data of a run."""

from __future__ import annotations

import numpy as np

from mae_jax.config import DataConfig
from mae_jax.tools.report import page, run_logs
from mae_jax.utils.errors import ConfigError, TrainingError

_COUNTS = {
  "unreadable": "images replaced in training, as they cannot be read",
  "eval_unreadable": "held-out images that cannot be read",
  "skipped": "steps without an update, as something was not finite",
  "loss_spikes": "loss spikes",
}


def of(run: run_logs.RunLogs, name: str, look_at: int) -> page.Health:
  """What its logs say, and what its data look like if they are here.

  Args:
    run: the run.
    name: for people.
    look_at: images; 0 for none.
  """
  rows = [
    (text, f"{value:,.0f}")
    for key, text in _COUNTS.items()
    if (value := run.last(key)) is not None
  ]
  warnings = [f"{text} {name}" for name, text in rows if text != "0"]
  if run.config is None:
    return page.Health(name, rows, warnings)
  data = run.config.data
  rows.append(("mean, configured", _numbers(data.mean)))
  rows.append(("std, configured", _numbers(data.std)))
  if look_at:
    try:
      more, told = _looked(data, look_at)
    except (ConfigError, TrainingError) as error:
      rows.append(("images", f"not looked at: {error}"))
    else:
      rows += more
      warnings += told
  return page.Health(name, rows, warnings)


def _looked(
  data: DataConfig, number: int
) -> tuple[list[tuple[str, str]], list[str]]:
  # TensorFlow takes seconds to import.
  from mae_jax.data import sources
  from mae_jax.tools import inspect_data

  source = sources.open_source(data, "train")
  found, _ = inspect_data.look(source, number, data)
  rows = [
    ("images to train on", f"{source.num_examples:,}"),
    ("looked at", f"{found.num_images:,}"),
    ("of these cannot be read", f"{len(found.unreadable.names):,}"),
  ]
  if len(found.sizes):
    middle = np.median(found.sizes, axis=0).astype(int)
    rows += [
      ("height x width, median", f"{middle[0]} x {middle[1]}"),
      ("mean, found", _numbers(found.mean)),
      ("std, found", _numbers(found.std)),
    ]
  return rows, inspect_data.warnings(found, data, source.class_names)


def _numbers(values: np.ndarray | tuple[float, ...]) -> str:
  return ", ".join(f"{value:.4f}" for value in values)
