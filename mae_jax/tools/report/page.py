"""Writes the report page: interactive charts and sliders of pictures."""

import base64
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import jinja2
from plotly import offline

from mae_jax.config import Config, leaves
from mae_jax.tools.report import charts, results, run_logs

_TEMPLATE = pathlib.Path(__file__).with_name("page.html")
_TITLE = 4  # runs that the title names
_ENVIRONMENT = (
  "command", "devices", "processes", "host", "system", "cores", "python",
)  # fmt: skip


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


def render(runs: charts.Runs, summaries: Sequence[DataSummary]) -> str:
  """Returns the HTML page of one or more runs and the data of each."""
  names = short_names([run.name for run in runs])
  runs = [
    dataclasses.replace(run, name=name)
    for run, name in zip(runs, names, strict=True)
  ]
  more = len(names) - _TITLE
  drawn: dict[str, Any] = {}
  sections = []
  for section in charts.sections(runs):
    ids = [
      f"chart{len(drawn) + number}" for number in range(len(section.charts))
    ]
    drawn |= zip(ids, section.charts, strict=True)
    table = results.comparison(runs, section.compared)
    sections.append(
      {"name": section.name, "ids": ids, "note": section.note, "table": table}
    )
  sliders = list(_sliders(runs))
  environment = jinja2.Environment(
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  template = environment.from_string(_TEMPLATE.read_text())
  return template.render(
    title=", ".join(names[:_TITLE]) + (f" and {more} more" if more > 0 else ""),
    plotly=offline.get_plotlyjs(),
    summary=results.summary(runs),
    sections=sections,
    charts_json=_json(drawn),
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


def _sliders(runs: charts.Runs) -> Iterator[dict[str, Any]]:
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


def _settings(runs: charts.Runs) -> dict[str, Any]:
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


def _environment(runs: charts.Runs) -> dict[str, Any]:
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
