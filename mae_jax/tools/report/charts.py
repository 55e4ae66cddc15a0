"""Charts: scalars over steps, and accuracies over labels."""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from mae_jax.tools.report import names, run_logs

# The palette of Okabe and Ito, which color-blind people can distinguish.
_COLORS = (
  "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000",
)  # fmt: skip
_SYMBOLS = ("circle", "square-open", "diamond", "x")
_DASHES = ("solid", "dash", "dot", "dashdot")
# Charts of the first section beside the loss, each of one scalar. Other scalars
# have a chart each in the last sections.
_TRAINING = {
  "lr": "learning rate",
  "grad_norm": "gradient norm",
  "images_per_second": "images a second",
}
_LOSS = ("loss", "eval_loss")
_NOT_SHOWN = (
  "step", "images_per_second_per_device", "seconds", "eval_seconds",
  "timestamp",
)  # fmt: skip
_FEW_STEPS = 8  # axes of fewer steps have a tick for each
_NO_TRACE = "start_"  # scalars logged once per start
_STD = "_std/"  # in the names of standard deviations

Runs = Sequence[run_logs.RunLogs]
Chart = dict[str, Any]  # data and layout, for Plotly


@dataclasses.dataclass(frozen=True)
class Section:
  """A section of the page.

  Attributes:
    name: its heading.
    charts: its charts.
    note: a line below them, or "".
    compared: scalars of single evaluations, to show in a table.
  """

  name: str
  charts: list[Chart]
  note: str = ""
  compared: Sequence[str] = ()


def sections(runs: Runs) -> list[Section]:
  """Makes all sections; those that are empty are left out."""
  logged = dict.fromkeys(
    key for run in runs for record in run.records for key in record
  )
  # A counter that stays 0 needs a line, not a chart.
  zero = [
    key
    for key in names.COUNTS
    if key in logged
    and all(value == 0 for run in runs for value in run.series(key)[1])
  ]
  rest = [
    key
    for key in logged
    if key not in (*_TRAINING, *_LOSS, *_NOT_SHOWN, *zero)
    and not key.startswith(_NO_TRACE)
  ]
  evaluated = [
    key for key in rest if key.startswith("eval_") and key not in names.COUNTS
  ]
  others = [key for key in rest if key not in evaluated]
  curves, compared = _split(runs, [key for key in evaluated if _STD not in key])
  groups: dict[str, list[str]] = {}
  for key in curves:  # eval_knn_5/MAE and eval_knn_5/raw pixels share one
    groups.setdefault(key.partition("/")[0], []).append(key)
  training = [
    *(_chart(some, title, _LOSS) for title, some in _losses(runs)),
    *(_chart(runs, title, (key,)) for key, title in _TRAINING.items()),
  ]
  evaluation = [
    *(_chart(runs, names.title(key), keys) for key, keys in groups.items()),
    *_by_labels(runs, compared),
  ]
  counts = [_chart(runs, names.title(key), (key,)) for key in others]
  found = (
    Section("Training", _present(training)),
    Section("Evaluation", _present(evaluation), compared=compared),
    Section("Counts and rates", _present(counts), _zero_note(zero)),
  )
  return [each for each in found if each.charts or each.note or each.compared]


def color(number: int) -> str:
  """Returns the color of a run by its number."""
  return _COLORS[number % len(_COLORS)]


def spread(key: str) -> str:
  """Returns the scalar with the standard deviation of another."""
  return key.replace("/", _STD)


def _split(runs: Runs, keys: Sequence[str]) -> tuple[list[str], list[str]]:
  """Divides scalars into curves, and those that no run has at two steps.

  Single values without a slash are in the table of runs already.
  """
  curves = [
    key for key in keys if any(len(run.series(key)[0]) > 1 for run in runs)
  ]
  compared = [key for key in keys if key not in curves and "/" in key]
  return curves, compared


def _losses(runs: Runs) -> list[tuple[str, list[tuple[int, run_logs.RunLogs]]]]:
  """Groups runs, with their numbers, by what their losses measure."""
  groups: dict[str, list[tuple[int, run_logs.RunLogs]]] = {}
  for number, run in enumerate(runs):
    groups.setdefault(_loss(run), []).append((number, run))
  if len(groups) == 1:
    return [("loss", list(enumerate(runs)))]
  return [(f"loss: {kind or 'unknown'}", some) for kind, some in groups.items()]


def _loss(run: run_logs.RunLogs) -> str:
  """Describes what a run's loss measures; "" if its settings are unknown."""
  if run.config is None:
    return ""
  if run.config.task != "pretrain":
    return run.config.task
  objective = run.config.objective
  return f"{objective.loss} of {objective.target}, {objective.loss_on} patches"


def _present(charts: Sequence[Chart]) -> list[Chart]:
  return [chart for chart in charts if chart["data"]]


def _zero_note(keys: Sequence[str]) -> str:
  """Returns a line about counters that stayed 0; "" for no counters."""
  # "no skipped steps" implies it.
  words = [names.COUNTS[key] for key in keys if key != "consecutive_skipped"]
  if len(words) > 1:
    words[-2:] = [f"{words[-2]} or {words[-1]}"]
  return f"no {', '.join(words)}" if words else ""


def _chart(
  runs: Runs | Sequence[tuple[int, run_logs.RunLogs]],
  title: str,
  keys: Sequence[str],
) -> Chart:
  """Draws scalars of runs over steps, with the best evaluation."""
  numbered = [
    each if isinstance(each, tuple) else (number, each)
    for number, each in enumerate(runs)
  ]
  traces: list[dict[str, Any]] = []
  marks: list[dict[str, Any]] = []
  for number, run in numbered:
    for place, key in enumerate(keys):
      steps, values = run.series(key)
      if not steps:
        continue
      label = run.name
      if len(keys) > 1:
        label += f", {names.series(key)}"
      # Of one run, each line has a color; of several, each run.
      chosen = color(place if len(numbered) == 1 and "/" in key else number)
      deviation = run.series(spread(key))[1] if "/" in key else []
      traces.append(
        _trace(label, steps, values, deviation, chosen, place)
        | {"mode": "lines+markers" if len(steps) < 40 else "lines"}
      )
      if run.best is not None and run.best.metric == key:
        marks.append(_mark(run.best.step, chosen))
  layout = {}
  if traces:
    layout = _layout(title, {step for each in traces for step in each["x"]})
  if marks:
    layout |= {"shapes": [mark["shape"] for mark in marks]}
    layout |= {"annotations": [mark["note"] for mark in marks]}
  return {"data": traces, "layout": layout}


def _trace(
  label: str,
  x: Sequence[Any],
  y: Sequence[float | None],
  deviation: Sequence[float | None],
  chosen: str,
  place: int,
) -> dict[str, Any]:
  error = {"type": "data", "array": deviation, "visible": bool(deviation)}
  return {
    "error_y": error | {"color": chosen, "thickness": 1.5, "width": 5},
    "type": "scatter",
    "x": x,
    "y": y,
    "name": label,
    "line": {"color": chosen, "dash": _DASHES[place % 4]},
    "marker": {"symbol": _SYMBOLS[place % 4], "size": 7},
  }


def _mark(step: int | None, chosen: str) -> dict[str, Any]:
  """Draws a vertical line at the best evaluation."""
  return {
    "shape": {
      "type": "line", "xref": "x", "yref": "paper", "x0": step, "x1": step,
      "y0": 0, "y1": 1, "line": {"color": chosen, "width": 1, "dash": "dot"},
    },
    "note": {
      "x": step, "y": 1, "yref": "paper", "yanchor": "bottom", "text": "best",
      "showarrow": False, "font": {"color": chosen, "size": 11},
    },
  }  # fmt: skip


def _by_labels(runs: Runs, keys: Sequence[str]) -> Iterator[Chart]:
  """Draws single evaluations over the number of labels a class."""
  measures: dict[str, dict[tuple[int, str], list[str]]] = {}
  for number, run in enumerate(runs):
    for key in keys:
      found = names.compared(key)
      if found.shots and run.last(key) is not None:
        lines = measures.setdefault(found.measure, {})
        lines.setdefault((number, found.series), []).append(key)
  for measure, lines in measures.items():
    series = list(dict.fromkeys(name for _, name in lines))
    traces = []
    for (number, name), some in lines.items():
      run, place = runs[number], series.index(name)
      deviation = [run.last(spread(key)) for key in some]
      traces.append(
        _trace(
          name if len(runs) == 1 else f"{run.name}, {name}",
          [names.compared(key).shots for key in some],
          [run.last(key) for key in some],
          deviation if any(x is not None for x in deviation) else [],
          color(place if len(runs) == 1 else number),
          place,
        )
        | {"mode": "lines+markers"}
      )
    if len({shots for trace in traces for shots in trace["x"]}) > 1:
      axis = {"title": {"text": "labels a class"}, "type": "category"}
      yield {"data": traces, "layout": _frame(measure, axis)}


def _layout(title: str, steps: Collection[int]) -> dict[str, Any]:
  axis: dict[str, Any] = {"title": {"text": "step"}, "tickformat": ",d"}
  low, high = min(steps), max(steps)
  if high - low < _FEW_STEPS:  # no ticks between two steps
    axis |= {"dtick": 1}
  if low == high:
    axis |= {"range": [low - 1, high + 1]}
  return _frame(title, axis)


def _frame(title: str, axis: dict[str, Any]) -> dict[str, Any]:
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
