"""Writes the report page: interactive charts and sliders of pictures."""

import base64
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Self

import jinja2
from plotly import offline

from mae_jax.config import Config, leaves
from mae_jax.tools.report import run_logs

_TEMPLATE = pathlib.Path(__file__).with_name("page.html")
# The palette of Okabe and Ito, which color-blind people can distinguish.
_COLORS = (
  "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000",
)  # fmt: skip
_SYMBOLS = ("circle", "square-open", "diamond", "x")
_DASHES = ("solid", "dash", "dot", "dashdot")
# Charts of the first section, each of one or more scalars. Other scalars have a
# chart each in the last sections.
_TRAINING: Sequence[tuple[str, Sequence[str]]] = (
  ("loss", ("loss", "eval_loss")),
  ("learning rate", ("lr",)),
  ("gradient norm", ("grad_norm",)),
  ("images a second", ("images_per_second",)),
)
_NOT_SHOWN = (
  "step", "images_per_second_per_device", "seconds", "eval_seconds",
  "timestamp",
)  # fmt: skip
_ENVIRONMENT = (
  "command", "devices", "processes", "host", "system", "cores", "python",
)  # fmt: skip
_FEW_STEPS = 8  # axes of fewer steps have a tick for each
_NO_TRACE = "start_"  # scalars logged once per start
# Counters of problems.
COUNTS = {
  "loss_spikes": "loss spikes",
  "skipped": "skipped steps",
  "consecutive_skipped": "skipped steps in a row",
  "unreadable": "unreadable images",
  "eval_unreadable": "unreadable held-out images",
}
_TITLES = COUNTS | {
  "eval_top1": "top-1 accuracy",
  "eval_top5": "top-5 accuracy",
  "eval_balanced_accuracy": "balanced accuracy",
  "eval_f1_macro": "macro F1",
  "eval_auc_macro": "macro AUC",
  "mfu": "share of the devices' peak (MFU)",
}
_OF_ROLES = {"lr_": "learning rate", "grad_norm_": "gradient norm"}
_PROBE = re.compile(r"eval_(linear|knn)_(\d+|all)")
_PROBES = {"linear": "linear probe", "knn": "kNN"}
_SHOTS = re.compile(r"(.*)_(\d+|all)")
_STD = "_std/"  # in the names of standard deviations

_Charts = list[tuple[str, Sequence[str]]]  # title and scalars of each
_Runs = Sequence[run_logs.RunLogs]


@dataclasses.dataclass(frozen=True)
class DataSummary:
  """The description of a run's data.

  Attributes:
    name: the name of the run.
    rows: names and values.
    warnings: probable mistakes.
  """

  name: str
  rows: list[tuple[str, str]]
  warnings: list[str]


def render(runs: _Runs, summaries: Sequence[DataSummary]) -> str:
  """Returns the HTML page of one or more runs and the data of each."""
  names = short_names([run.name for run in runs])
  runs = [
    dataclasses.replace(run, name=name)
    for run, name in zip(runs, names, strict=True)
  ]
  charts: dict[str, Any] = {}
  sections = []
  for section, some, note in _sections(runs):
    ids = []
    for title, keys in some:
      traces = list(_traces(runs, keys))
      if traces:
        number = f"chart{len(charts)}"
        steps = {step for trace in traces for step in trace["x"]}
        charts[number] = {"data": traces, "layout": _layout(title, steps)}
        ids.append({"id": number})
    if ids or note:
      sections.append({"name": section, "charts": ids, "note": note})
  sliders = list(_sliders(runs))
  environment = jinja2.Environment(
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  template = environment.from_string(_TEMPLATE.read_text())
  return template.render(
    title=", ".join(names),
    plotly=offline.get_plotlyjs(),
    summary=_summary(runs),
    sections=sections,
    charts_json=_json(charts),
    sliders=sliders,
    sliders_json=_json(
      {
        each["id"]: {k: each[k] for k in ("steps", "images")}
        for each in sliders
      }
    ),
    health=summaries,
    settings=_settings(runs),
    environment=_environment(runs),
  )


def short_names(names: Sequence[str]) -> list[str]:
  """Shortens paths to their last parts, as many as make them distinct."""
  parts = [name.split("/") for name in names]
  for count in range(1, max(map(len, parts)) + 1):
    short = ["/".join(part[-count:]) for part in parts]
    if len(set(short)) == len(short):
      return short
  return list(names)


def _sections(runs: _Runs) -> Iterator[tuple[str, _Charts, str]]:
  """Yields each section: its name, charts, and a note in place of charts."""
  logged = dict.fromkeys(
    key for run in runs for record in run.records for key in record
  )
  used = {key for _, keys in _TRAINING for key in keys}
  # A counter that stays 0 needs a line, not a chart.
  zero = [
    key
    for key in COUNTS
    if key in logged
    and all(value == 0 for run in runs for value in run.series(key)[1])
  ]
  rest = [
    key
    for key in logged
    if key not in used
    and key not in _NOT_SHOWN
    and key not in zero
    and not key.startswith(_NO_TRACE)
  ]
  yield "Training", list(_TRAINING), ""
  evaluated = [
    key for key in rest if key.startswith("eval_") and key not in COUNTS
  ]
  groups: dict[str, list[str]] = {}
  for key in evaluated:  # eval_knn_5/MAE and eval_knn_5/raw pixels share one
    if _STD not in key:
      groups.setdefault(key.partition("/")[0], []).append(key)
  yield "Evaluation", [(_title(key), keys) for key, keys in groups.items()], ""
  others = [key for key in rest if key not in evaluated]
  yield (
    "Counts and rates",
    [(_title(key), (key,)) for key in others],
    _zero_note(zero),
  )


def _zero_note(keys: Sequence[str]) -> str:
  """Returns a line about counters that stayed 0; "" for no counters."""
  # "no skipped steps" implies it.
  names = [COUNTS[key] for key in keys if key != "consecutive_skipped"]
  if len(names) > 1:
    names[-2:] = [f"{names[-2]} or {names[-1]}"]
  return f"no {', '.join(names)}" if names else ""


def _title(key: str) -> str:
  if key in _TITLES:
    return _TITLES[key]
  if probe := _PROBE.fullmatch(key):
    return f"{_PROBES[probe[1]]}, {_labels(probe[2])}, accuracy"
  for start, name in _OF_ROLES.items():
    if key.startswith(start):
      return f"{name}, {key.removeprefix(start).replace('_', ' ')}"
  return key.removeprefix("eval_").replace("_", " ")


def _labels(shots: str) -> str:
  if shots == "all":
    return "all labels"
  return f"{shots} label{'' if shots == '1' else 's'} a class"


def _traces(runs: _Runs, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
  for number, run in enumerate(runs):
    for dash, key in enumerate(keys):
      steps, values = run.series(key)
      if steps:
        label = run.name
        if len(keys) > 1:
          label += f", {_label(key)}"
        spread = run.series(key.replace("/", _STD))[1] if "/" in key else []
        yield {
          "error_y": {"type": "data", "array": spread, "visible": bool(spread)},
          "type": "scatter",
          "mode": "lines+markers" if len(steps) < 40 else "lines",
          "x": steps,
          "y": values,
          "name": label,
          "line": {"color": _color(number), "dash": _DASHES[dash % 4]},
          "marker": {"symbol": _SYMBOLS[dash % 4]},
        }


def _label(key: str) -> str:
  group, slash, name = key.partition("/")
  if slash:  # a trial of label_efficiency: eval_top1/from_scratch_5
    shots = _SHOTS.fullmatch(name) if group == "eval_top1" else None
    if shots is None:
      return name
    return f"{shots[1].replace('_', ' ')}, {_labels(shots[2])}"
  return "held out" if key.startswith("eval_") else "training"


def _color(number: int) -> str:
  return _COLORS[number % len(_COLORS)]


def _layout(title: str, steps: Collection[int]) -> dict[str, Any]:
  axis: dict[str, Any] = {"title": {"text": "step"}, "tickformat": ",d"}
  low, high = min(steps), max(steps)
  if high - low < _FEW_STEPS:  # no ticks between two steps
    axis |= {"dtick": 1}
  if low == high:
    axis |= {"range": [low - 1, high + 1]}
  return {
    "title": {"text": title, "font": {"size": 14}, "x": 0.02},
    "margin": {"l": 55, "r": 10, "t": 35, "b": 70},
    "xaxis": axis,
    "yaxis": {"exponentformat": "e"},
    "hovermode": "x unified",
    "hoverdistance": -1,  # no limit: points of a short run are far apart
    "showlegend": True,
    "legend": {"orientation": "h", "y": -0.32},
  }


def _sliders(runs: _Runs) -> Iterator[dict[str, Any]]:
  for number, run in enumerate(runs):
    for place, (tag, pictures) in enumerate(sorted(run.pictures.items())):
      steps = sorted(pictures)
      images = [base64.b64encode(pictures[step]).decode() for step in steps]
      yield {
        "id": f"slider{number}-{place}",
        "name": f"{run.name}, {tag}",
        "steps": steps,
        "images": [f"data:image/png;base64,{each}" for each in images],
      }


def _summary(runs: _Runs) -> dict[str, Any]:
  columns = {"loss": "loss", "eval_loss": "held-out loss"}
  if any(run.last("eval_top1") is not None for run in runs):
    columns["eval_top1"] = "held-out top-1"
  columns["images_per_second"] = "images a second"
  rows = []
  for number, run in enumerate(runs):
    cells = [
      run.config.task if run.config else "",
      f"{run.records[-1]['step'] if run.records else 0:,}",
      *(_figure(key, run.last(key)) for key in columns),
      str(run.started.get("started", "")),
    ]
    rows.append({"name": run.name, "color": _color(number), "cells": cells})
  heads = ["task", "step", *columns.values(), "started"]
  return {"heads": heads, "rows": rows}


def _figure(key: str, value: float | None) -> str:
  if value is None:
    return ""
  return f"{100 * value:.1f} %" if key == "eval_top1" else f"{value:.4g}"


def _settings(runs: _Runs) -> dict[str, Any]:
  """Lists the settings; first those that differ."""
  notes, columns, heads = [], [], []
  for run in runs:
    if run.config is None:
      notes.append(
        f"{run.name}: settings are missing, or belong to another version"
      )
      continue
    column = _Column.of(run, run.config)
    if column.recipe is None:
      notes.append(
        f"{run.name}: recipe {run.recipe or ''} not found, settings are not "
        "compared; choose a recipe with --recipe=NAME"
      )
    else:
      note = f"{run.name} is compared with {run.recipe}"
      if not any(map(column.differs, column.settings)):
        note += ": no setting differs"
      notes.append(note)
    columns.append(column)
    heads.append(run.name)
  changed: list[dict[str, Any]] = []
  rest: list[dict[str, Any]] = []
  for key in columns[0].settings if columns else ():
    cells = [column.cell(key) for column in columns]
    alike = run_logs.same(
      key, [(each.settings.get(key), each.directory) for each in columns]
    )
    any_change = not alike or any(cell["changed"] for cell in cells)
    (changed if any_change else rest).append({"name": key, "cells": cells})
  return {"notes": notes, "heads": heads, "changed": changed, "same": rest}


@dataclasses.dataclass(frozen=True)
class _Column:
  """The settings of a run and, if found, of its recipe."""

  settings: Mapping[str, Any]
  recipe: Mapping[str, Any] | None
  directory: str

  @classmethod
  def of(cls, run: run_logs.RunLogs, config: Config) -> Self:
    recipe = run_logs.recipe_config(run)
    return cls(
      dict(leaves(config)),
      None if recipe is None else dict(leaves(recipe)),
      run.directory(),
    )

  def differs(self, key: str) -> bool:
    if self.recipe is None:
      return False
    value = self.settings[key], self.directory
    return not run_logs.same(key, [value, (self.recipe[key], os.getcwd())])

  def cell(self, key: str) -> dict[str, Any]:
    text, changed = f"{self.settings[key]!r}", self.differs(key)
    if changed and self.recipe is not None:
      text += f" (recipe: {self.recipe[key]!r})"
    return {"text": text, "changed": changed}


def _environment(runs: _Runs) -> dict[str, Any]:
  rows = []
  for key in _ENVIRONMENT:
    cells = [run.started.get(key, "") for run in runs]
    cells = [" ".join(x) if isinstance(x, list) else str(x) for x in cells]
    rows.append((key, cells))
  packages = [run.started.get("packages", {}) for run in runs]
  for key in dict.fromkeys(name for each in packages for name in each):
    rows.append((key, [each.get(key, "") for each in packages]))
  rows = [(key, cells) for key, cells in rows if any(cells)]
  return {"heads": [run.name for run in runs], "rows": rows}


def _json(value: Any) -> str:
  # No value can close the <script> element around it.
  return json.dumps(value).replace("<", "\\u003c")
