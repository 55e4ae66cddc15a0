"""The table and the plot of a label-efficiency comparison."""

from __future__ import annotations

import numpy as np
import pytest

from mae_jax.evals import label_efficiency_report

MEMBERS = [
  label_efficiency_report.Trial(start, shots, seed)
  for start in ("pre-trained", "from scratch")
  for shots in (5, 0)
  for seed in range(3)
]
TOP1 = np.array([0.8, 0.82, 0.84, 0.9, 0.9, 0.9, 0.5, 0.6, 0.7, 0.8, 0.8, 0.83])


def test_means_and_standard_deviations():
  report = label_efficiency_report.compare(MEMBERS, TOP1)
  rows = [" ".join(line.split()) for line in report.text.splitlines()]
  assert rows == [
    "held-out top-1, mean ± standard deviation of 3 seeds",
    "5 per class all labels",
    "pre-trained 82.0 ± 2.0 % 90.0 ± 0.0 %",
    "from scratch 60.0 ± 10.0 % 81.0 ± 1.7 %",
  ]
  assert report.scalars["eval_top1/from_scratch_all"] == np.mean(TOP1[9:])


def test_one_seed_has_no_spread():
  report = label_efficiency_report.compare(MEMBERS[::3], TOP1[::3])
  assert "±" not in report.text
  assert not [name for name in report.scalars if "std" in name]


def test_the_plot_shows_every_run():
  picture = label_efficiency_report.compare(MEMBERS, TOP1).pictures[
    "comparison"
  ]
  assert picture.dtype == np.uint8
  assert picture.ndim == 3
  assert picture.shape[2] == 3
  moved = TOP1.copy()
  moved[7] = 0.2
  other = label_efficiency_report.compare(MEMBERS, moved).pictures["comparison"]
  assert (picture != other).any()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_starts_stand_beside_their_number_of_labels(count: int):
  row = {shots: np.array([0.5, 0.6]) for shots in (5, 10, 20, 50, 0)[:count]}
  starts = ("pre-trained", "from scratch", "another")
  figure = label_efficiency_report.draw_figure(dict.fromkeys(starts, row))
  (axes,) = figure.axes
  ticks = axes.get_xticks()
  assert len(ticks) == count
  low, high = axes.get_xlim()
  assert low <= ticks[0] - 0.5
  assert high >= ticks[-1] + 0.5
  means = [line for line in axes.lines if line.get_label() in starts]
  places = np.stack([np.asarray(line.get_xdata()) for line in means])
  assert (np.abs(places - ticks) < 0.1 * (high - low) / count).all()
  assert (np.diff(places, axis=0) > 0.02).all()  # not on top of each other
  np.testing.assert_allclose(places.mean(axis=0), ticks, atol=1e-9)
