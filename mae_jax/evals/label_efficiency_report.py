"""A table and a plot of accuracy over the number of labels."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.backends import backend_agg
from matplotlib.figure import Figure

from mae_jax.evals import results


@dataclasses.dataclass(frozen=True)
class Trial:
  """One of the fine-tuning runs.

  Attributes:
    start: initialization, as shown in the table.
    shots: labeled images per class; 0 for all.
    seed: random seed.
  """

  start: str
  shots: int
  seed: int


_DOT_OFFSET = 0.08  # as a fraction of the distance of two ticks
Groups = dict[str, dict[int, np.ndarray]]  # start, shots -> one per seed


def compare(trials: Sequence[Trial], top1: np.ndarray) -> results.Report:
  """Computes means and standard deviations over seeds from accuracies [M]."""
  groups: Groups = {}
  for start, shots in dict.fromkeys((x.start, x.shots) for x in trials):
    own = [(x.start, x.shots) == (start, shots) for x in trials]
    groups.setdefault(start, {})[shots] = top1[own]
  scalars = {}
  for start, row in groups.items():
    for shots, values in row.items():
      name = f"{start.replace(' ', '_')}_{shots or 'all'}"
      scalars[f"eval_top1/{name}"] = float(values.mean())
      if len(values) > 1:
        scalars[f"eval_top1_std/{name}"] = float(values.std(ddof=1))
  return results.Report(scalars, {"comparison": plot(groups)}, table(groups))


def table(groups: Groups) -> str:
  """Formats a table: one row per initialization, one column per shots."""
  first = next(iter(groups.values()))
  seeds = len(next(iter(first.values())))
  title = "held-out top-1"
  if seeds > 1:
    title += f", mean ± standard deviation of {seeds} seeds"
  rows = [("", map(results.label_count, first))]
  rows += [
    (start, map(results.percent, row.values())) for start, row in groups.items()
  ]
  lines = [
    f"{start:<14}" + "".join(f"{cell:>18}" for cell in cells)
    for start, cells in rows
  ]
  return "\n".join([title, *lines])


def plot(groups: Groups) -> np.ndarray:
  """Plots each run as a dot, and the means, as [H, W, 3] uint8."""
  canvas = backend_agg.FigureCanvasAgg(draw_figure(groups))
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw_figure(groups: Groups) -> Figure:
  """Draws the figure of `plot`."""
  figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
  axes = figure.add_subplot()
  # Offset on both sides of the tick, so that dots do not overlap.
  offsets = _DOT_OFFSET * (np.arange(len(groups)) - (len(groups) - 1) / 2)
  for number, (start, row) in enumerate(groups.items()):
    color = f"C{number}"
    places = np.arange(len(row)) + offsets[number]
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
  axes.set_xticks(range(len(first)), [*map(results.label_count, first)])
  # Otherwise a single tick would make the offset fill the axis.
  axes.set_xlim(-0.5, len(first) - 0.5)
  axes.set_ylabel("held-out top-1 accuracy, %")
  axes.grid(axis="y", alpha=0.3)
  axes.legend()
  return figure
