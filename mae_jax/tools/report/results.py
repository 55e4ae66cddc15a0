"""Tables: the last results of each run, and comparisons of evaluations."""

import datetime
import math
from collections.abc import Sequence
from typing import Any

from mae_jax.tools.report import charts, names

_FIRST = ("loss", "eval_loss")
_NO_RESULT = ("eval_seconds", *names.COUNTS)


def summary(runs: charts.Runs) -> dict[str, Any]:
  """Lists runs with their last results.

  Returns:
    `heads` and, for each run, its name, color and `cells`, each a text and the
    number to sort by, None to sort by the text.
  """
  logged = dict.fromkeys(
    key for run in runs for record in run.records for key in record
  )
  keys = [
    *_FIRST,
    *(
      key
      for key in logged
      if key.startswith("eval_")
      and "/" not in key
      and key not in (*_FIRST, *_NO_RESULT)
    ),
    "images_per_second",
  ]
  rows = []
  for number, run in enumerate(runs):
    seconds = run.seconds
    params = run.started.get("num_params")
    cells: list[tuple[str, Any]] = [
      (run.config.task if run.config else "", None),
      (run.status, None),
      (f"{run.step:,}", run.step),
      (_duration(seconds), seconds),
      (f"{params / 1e6:.1f} M" if params else "", params),
      *((names.figure(key, run.last(key)), run.last(key)) for key in keys),
      (_best(run), None),
      (str(run.started.get("started", "")), None),
    ]
    rows.append((run.name, charts.color(number), cells))
  heads = ["task", "status", "step", "trained for", "parameters"]
  heads += [names.title(key) for key in keys]
  heads[-1] = "images a second"
  heads += ["best", "started"]
  used = [
    place
    for place, head in enumerate(heads)
    if head in ("task", "step") or any(cells[place][0] for _, _, cells in rows)
  ]
  return {
    "heads": [heads[place] for place in used],
    "rows": [
      {"name": name, "color": color, "cells": [cells[place] for place in used]}
      for name, color, cells in rows
    ],
  }


def comparison(runs: charts.Runs, keys: Sequence[str]) -> dict[str, Any] | None:
  """Makes a table of single evaluations; None if there are none.

  Returns:
    `heads` of what is compared and `rows` of measures, with cells such as
    "89.5 ± 1.5 %".
  """
  cells: dict[str, dict[str, str]] = {}
  heads: dict[str, None] = {}
  for run in runs:
    for key in keys:
      value = run.last(key)
      if value is None:
        continue
      found = names.compared(key)
      head = found.series if len(runs) == 1 else f"{run.name}, {found.series}"
      measure = found.measure
      if found.shots:
        measure += f", {names.labels(found.shots)}"
      heads[head] = None
      row = cells.setdefault(measure, {})
      row[head] = names.figure(key, value, run.last(charts.spread(key)))
  if not cells:
    return None
  rows = [
    (measure, [row.get(head, "") for head in heads])
    for measure, row in cells.items()
  ]
  return {"heads": list(heads), "rows": rows}


def _best(run: Any) -> str:
  """Describes the evaluation that train.keep_best keeps."""
  found = run.best
  if found is None or found.step is None or not math.isfinite(found.value):
    return ""
  value = names.figure(found.metric, found.value)
  return f"{names.title(found.metric)} {value} at step {found.step:,}"


def _duration(seconds: float | None) -> str:
  if seconds is None:
    return ""
  return str(datetime.timedelta(seconds=round(seconds)))
