"""Tests that losses of the digits recipe stay close to three committed runs.

Rounding changes losses by far less than the spread between seeds. A changed
mask, target, learning rate or augmentation changes them by far more.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.helpers import commands, digits_curve, runs

CURVES = json.loads(digits_curve.FILE.read_text())
STEPS = [int(step) for step in CURVES["0"]]
TABLE = np.array(
  [list(CURVES[str(seed)].values()) for seed in digits_curve.SEEDS]
)

# Losses of single batches vary as much in one run as between seeds. So three
# runs tell little about one step, and much about all steps together.
SPREAD = np.median(TABLE.std(axis=0, ddof=1))


def _assert_in_band(losses: np.ndarray, count: int) -> None:
  table = TABLE[:, :count]
  np.testing.assert_array_less(losses, table.max(axis=0) + 4 * SPREAD)
  np.testing.assert_array_less(table.min(axis=0) - 4 * SPREAD, losses)


@pytest.mark.slow
def test_the_first_hundred_steps():
  _, losses = runs.steps(digits_curve.recipe(seed=0), 100)
  at = [step for step in STEPS if step <= 100]
  _assert_in_band(losses[np.array(at) - 1], len(at))
  # The committed run itself, up to rounding on another machine.
  np.testing.assert_allclose(
    losses[np.array(at) - 1], TABLE[0, : len(at)], rtol=5e-3
  )


@pytest.mark.slow
def test_the_whole_recipe_from_another_seed():
  # With XLA's default optimization: this run is longer than its compilation.
  done = commands.python(
    "-m",
    "tests.helpers.digits_curve",
    3,
    environ={"XLA_FLAGS": ""},
    timeout=1200,
  )
  assert done.returncode == 0, done.stderr
  losses = json.loads(done.stdout.splitlines()[-1])
  assert [int(step) for step in losses] == STEPS
  values = np.array(list(losses.values()))
  _assert_in_band(values, len(STEPS))
  # Means over the run of the three seeds deviate by at most 0.54 spreads.
  deviation = (values - TABLE.mean(axis=0))[4:].mean()
  assert abs(deviation) < 1.5 * SPREAD
