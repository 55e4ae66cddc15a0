"""Draws a page of runs: charts to zoom into, pictures to slide through."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
from plotly import offline

from mae_jax import config as config_lib
from mae_jax.report import runs as runs_lib

_TEMPLATE = pathlib.Path(__file__).with_name("page.html")
# Of Okabe and Ito, which colour-blind people tell apart.
_COLOURS = (
  "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000",
)  # fmt: skip
_SYMBOLS = ("circle", "square-open", "diamond", "x")
_DASHES = ("solid", "dash", "dot", "dashdot")
# Charts by section, each of one or more scalars. What is in none has one of
# its own in the last section.
_CHARTS: Mapping[str, Sequence[tuple[str, Sequence[str]]]] = {
  "Training": (
    ("loss", ("loss", "eval_loss")),
    ("learning rate", ("lr",)),
    ("gradient norm", ("grad_norm",)),
    ("images a second", ("images_per_second",)),
  ),
}
_NOT_SHOWN = ("step", "images_per_second_per_device", "seconds", "eval_seconds")
_NO_TRACE = "start_"  # of one line each
_STD = "_std/"  # in the name of what is the deviation of another scalar


@dataclasses.dataclass(frozen=True)
class Health:
  """What is known of the data of a run.

  Attributes:
    name: of the run.
    rows: names and texts.
    warnings: what is probably not meant.
  """

  name: str
  rows: list[tuple[str, str]]
  warnings: list[str]


def render(runs: Sequence[runs_lib.Run], health: Sequence[Health]) -> str:
  """The page.

  Args:
    runs: at least one.
    health: of their data.
  """
  names = short_names([run.name for run in runs])
  charts: dict[str, Any] = {}
  sections = []
  for section, some in _sections(runs):
    ids = []
    for title, keys in some:
      traces = list(_traces(runs, names, keys))
      if traces:
        number = f"chart{len(charts)}"
        charts[number] = {"data": traces, "layout": _layout(title)}
        ids.append({"id": number})
    if ids:
      sections.append({"name": section, "charts": ids})
  sliders = list(_sliders(runs, names))
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
    summary=_summary(runs, names),
    sections=sections,
    charts_json=_json(charts),
    sliders=sliders,
    sliders_json=_json(
      {
        each["id"]: {k: each[k] for k in ("steps", "images")}
        for each in sliders
      }
    ),
    health=health,
    settings=_settings(runs, names),
    environment=_environment(runs, names),
  )


def short_names(names: Sequence[str]) -> list[str]:
  """The last parts of paths, as many as tell them apart."""
  parts = [name.split("/") for name in names]
  for count in range(1, max(map(len, parts)) + 1):
    short = ["/".join(part[-count:]) for part in parts]
    if len(set(short)) == len(short):
      return short
  return list(names)


def _sections(
  runs: Sequence[runs_lib.Run],
) -> Iterator[tuple[str, list[tuple[str, Sequence[str]]]]]:
  logged = dict.fromkeys(
    key for run in runs for record in run.records for key in record
  )
  used = {key for some in _CHARTS.values() for _, keys in some for key in keys}
  rest = [
    key
    for key in logged
    if key not in used
    and key not in _NOT_SHOWN
    and not key.startswith(_NO_TRACE)
  ]
  for section, some in _CHARTS.items():
    yield section, list(some)
  evaluated = [key for key in rest if key.startswith("eval_")]
  groups: dict[str, list[str]] = {}
  for key in evaluated:  # as eval_knn_5/MAE and eval_knn_5/raw pixels
    if _STD not in key:
      groups.setdefault(key.partition("/")[0], []).append(key)
  yield "Evaluation", [(_spoken(name), keys) for name, keys in groups.items()]
  others = [key for key in rest if key not in evaluated]
  yield "Counts and rates", [(_spoken(key), (key,)) for key in others]


def _spoken(key: str) -> str:
  return key.removeprefix("eval_").replace("_", " ")


def _traces(
  runs: Sequence[runs_lib.Run], names: Sequence[str], keys: Sequence[str]
) -> Iterator[dict[str, Any]]:
  for number, (run, name) in enumerate(zip(runs, names, strict=True)):
    for dash, key in enumerate(keys):
      steps, values = run.series(key)
      if steps:
        label = name if len(keys) == 1 else f"{name}, {_label(key)}"
        _, spread = (
          run.series(key.replace("/", _STD)) if "/" in key else ([], [])
        )
        yield {
          "error_y": {"type": "data", "array": spread, "visible": bool(spread)},
          "type": "scatter",
          "mode": "lines+markers" if len(steps) < 40 else "lines",
          "x": steps,
          "y": values,
          "name": label,
          "line": {"color": _colour(number), "dash": _DASHES[dash % 4]},
          "marker": {"symbol": _SYMBOLS[dash % 4]},
        }


def _label(key: str) -> str:
  if "/" in key:
    return key.partition("/")[2]
  return "held out" if key.startswith("eval_") else "training"


def _colour(number: int) -> str:
  return _COLOURS[number % len(_COLOURS)]


def _layout(title: str) -> dict[str, Any]:
  return {
    "title": {"text": title, "font": {"size": 14}, "x": 0.02},
    "margin": {"l": 55, "r": 10, "t": 35, "b": 70},
    "xaxis": {"title": {"text": "step"}},
    "yaxis": {"exponentformat": "e"},
    "hovermode": "x unified",
    "hoverdistance": -1,  # of any point: those of a short run are far apart
    "showlegend": True,
    "legend": {"orientation": "h", "y": -0.32},
  }


def _sliders(
  runs: Sequence[runs_lib.Run], names: Sequence[str]
) -> Iterator[dict[str, Any]]:
  for number, (run, name) in enumerate(zip(runs, names, strict=True)):
    for place, (tag, pictures) in enumerate(sorted(run.pictures.items())):
      steps = sorted(pictures)
      yield {
        "id": f"slider{number}-{place}",
        "name": f"{name}, {tag}",
        "steps": steps,
        "images": [_data_uri(pictures[step]) for step in steps],
      }


def _data_uri(png: bytes) -> str:
  return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _summary(
  runs: Sequence[runs_lib.Run], names: Sequence[str]
) -> dict[str, Any]:
  heads = ["step", "loss", "held-out loss", "images a second", "started"]
  rows = []
  for number, (run, name) in enumerate(zip(runs, names, strict=True)):
    last = run.records[-1]["step"] if run.records else 0
    numbers = [
      run.last(key) for key in ("loss", "eval_loss", "images_per_second")
    ]
    cells = [f"{last:,}", *("" if x is None else f"{x:.4g}" for x in numbers)]
    cells.append(str(run.started.get("started", "")))
    rows.append({"name": name, "colour": _colour(number), "cells": cells})
  return {"heads": heads, "rows": rows}


def _settings(
  runs: Sequence[runs_lib.Run], names: Sequence[str]
) -> dict[str, Any]:
  """Every setting; first those in which a run differs."""
  notes, columns, heads = [], [], []
  for run, name in zip(runs, names, strict=True):
    if run.config is None:
      notes.append(f"{name}: its settings are of another version, or not there")
      continue
    column = _Column.of(run, run.config)
    if column.recipe is None:
      notes.append(
        f"{name}: there is no recipe {run.recipe or ''} here to compare with; "
        "--recipe=FILE names one"
      )
    else:
      note = f"{name} is compared with {run.recipe}"
      if not any(map(column.differs, column.settings)):
        note += ": no setting differs"
      notes.append(note)
    columns.append(column)
    heads.append(name)
  changed: list[dict[str, Any]] = []
  rest: list[dict[str, Any]] = []
  for key in columns[0].settings if columns else ():
    cells = [column.cell(key) for column in columns]
    alike = runs_lib.same(
      key, [(each.settings.get(key), each.directory) for each in columns]
    )
    any_change = not alike or any(cell["changed"] for cell in cells)
    (changed if any_change else rest).append({"name": key, "cells": cells})
  return {"notes": notes, "heads": heads, "changed": changed, "same": rest}


@dataclasses.dataclass(frozen=True)
class _Column:
  """The settings of a run, and those of its recipe if that is here."""

  settings: Mapping[str, Any]
  recipe: Mapping[str, Any] | None
  directory: str

  @classmethod
  def of(cls, run: runs_lib.Run, config: config_lib.Config) -> _Column:
    recipe = runs_lib.recipe_config(run)
    return cls(
      dict(config_lib.leaves(config)),
      None if recipe is None else dict(config_lib.leaves(recipe)),
      run.directory(),
    )

  def differs(self, key: str) -> bool:
    if self.recipe is None:
      return False
    value = self.settings[key], self.directory
    return not runs_lib.same(key, [value, (self.recipe[key], os.getcwd())])

  def cell(self, key: str) -> dict[str, Any]:
    text, changed = f"{self.settings[key]!r}", self.differs(key)
    if changed and self.recipe is not None:
      text += f" (recipe: {self.recipe[key]!r})"
    return {"text": text, "changed": changed}


def _environment(
  runs: Sequence[runs_lib.Run], names: Sequence[str]
) -> dict[str, Any]:
  rows = []
  for key in ("command", "devices", "processes", "host", "system", "cores"):
    cells = [run.started.get(key, "") for run in runs]
    cells = [" ".join(x) if isinstance(x, list) else str(x) for x in cells]
    rows.append((key, cells))
  rows.append(("python", [str(run.started.get("python", "")) for run in runs]))
  packages = [run.started.get("packages", {}) for run in runs]
  for key in dict.fromkeys(name for each in packages for name in each):
    rows.append((key, [each.get(key, "") for each in packages]))
  return {"heads": names, "rows": rows}


def _json(value: Any) -> str:
  # Nothing in it may end the script it stands in.
  return json.dumps(value).replace("<", "\\u003c")
