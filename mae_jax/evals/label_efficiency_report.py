"""Accuracies of many runs side by side: a table and a plot."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.backends import backend_agg
from matplotlib.figure import Figure

from mae_jax.evals import results


@dataclasses.dataclass(frozen=True)
class Trial:
  """One of the runs.

  Attributes:
    start: where it starts, as people read it.
    shots: labeled images a class; 0 for all.
    seed: of everything random.
  """

  start: str
  shots: int
  seed: int


_ASIDE = 0.08  # of the way from one number of labels to the next
Groups = dict[str, dict[int, np.ndarray]]  # start, shots -> one each seed


def compare(members: Sequence[Trial], top1: np.ndarray) -> results.Report:
  """Means and standard deviations over seeds.

  Args:
    members: M runs.
    top1: [M] their accuracies.
  """
  groups: Groups = {}
  for start, shots in dict.fromkeys(
    (each.start, each.shots) for each in members
  ):
    groups.setdefault(start, {})[shots] = np.array(
      [
        accuracy
        for each, accuracy in zip(members, top1, strict=True)
        if (each.start, each.shots) == (start, shots)
      ]
    )
  scalars = {}
  for start, row in groups.items():
    for shots, values in row.items():
      name = f"{start.replace(' ', '_')}_{shots or 'all'}"
      scalars[f"eval_top1/{name}"] = float(values.mean())
      if len(values) > 1:
        scalars[f"eval_top1_std/{name}"] = float(values.std(ddof=1))
  return results.Report(scalars, {"comparison": plot(groups)}, table(groups))


def table(groups: Groups) -> str:
  """A row a start, a column a number of labels."""
  first = next(iter(groups.values()))
  seeds = len(next(iter(first.values())))
  title = "held-out top-1"
  if seeds > 1:
    title += f", mean ± standard deviation of {seeds} seeds"
  header = f"{'':<14}" + "".join(f"{_labels(shots):>18}" for shots in first)
  rows = [
    f"{start:<14}" + "".join(f"{_cell(values):>18}" for values in row.values())
    for start, row in groups.items()
  ]
  return "\n".join([title, header, *rows])


def plot(groups: Groups) -> np.ndarray:
  """Each run as a dot, and the means, [H, W, 3] uint8."""
  canvas = backend_agg.FigureCanvasAgg(draw(groups))
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw(groups: Groups) -> Figure:
  """The figure of `plot`."""
  figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
  axes = figure.add_subplot()
  # Both sides of the number of labels, so that dots do not hide dots.
  aside = _ASIDE * (np.arange(len(groups)) - (len(groups) - 1) / 2)
  for number, (start, row) in enumerate(groups.items()):
    color = f"C{number}"
    places = np.arange(len(row)) + aside[number]
    axes.plot(
      places,
      [100 * values.mean() for values in row.values()],
      "-o",
      color=color,
      label=start,
    )
    for place, values in zip(places, row.values(), strict=True):
      axes.plot(
        np.full(len(values), place), 100 * values, ".", color=color, alpha=0.4
      )
  first = next(iter(groups.values()))
  axes.set_xticks(range(len(first)), [_labels(shots) for shots in first])
  # Of one number of labels, what stands beside it would be all of the axis.
  axes.set_xlim(-0.5, len(first) - 0.5)
  axes.set_ylabel("held-out top-1 accuracy, %")
  axes.grid(axis="y", alpha=0.3)
  axes.legend()
  return figure


def _labels(shots: int) -> str:
  return f"{shots} per class" if shots else "all labels"


def _cell(values: np.ndarray) -> str:
  text = f"{100 * values.mean():.1f}"
  if len(values) > 1:
    text += f" ± {100 * values.std(ddof=1):.1f}"
  return f"{text} %"
