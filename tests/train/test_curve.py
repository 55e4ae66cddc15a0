"""The loss of the digits recipe stays in the band of three committed runs.

Correct changes (another order of a sum) move single losses by less than the
spread between seeds; a changed mask, target, rate or augmentation does not.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.train import curve, runs

CURVES = json.loads(curve.FILE.read_text())
STEPS = [int(step) for step in CURVES["0"]]
TABLE = np.array([list(CURVES[str(seed)].values()) for seed in curve.SEEDS])


def _assert_in_band(losses: np.ndarray, count: int) -> None:
  mean = TABLE.mean(axis=0)[:count]
  # A single batch's loss varies by about as much in one run as between seeds;
  # three runs say little about the spread at one step, all steps say a lot.
  spread = np.sqrt((TABLE.std(axis=0, ddof=1) ** 2).mean())
  np.testing.assert_array_less(np.abs(losses - mean), 4 * spread)
  # The average deviation is held far closer than any single one.
  assert abs((losses - mean).mean()) < 2 * spread / np.sqrt(min(count, 16))


def test_the_first_hundred_steps():
  _, losses = runs.steps(curve.recipe(seed=0), 100)
  at = [step for step in STEPS if step <= 100]
  _assert_in_band(losses[np.array(at) - 1], len(at))
  # The very run that was committed, up to rounding on another machine.
  np.testing.assert_allclose(
    losses[np.array(at) - 1], TABLE[0, : len(at)], rtol=1e-3
  )


@pytest.mark.slow
def test_the_whole_recipe_from_another_seed(tmp_path):
  losses = curve.losses(3, str(tmp_path))
  assert [int(step) for step in losses] == STEPS
  _assert_in_band(np.array(list(losses.values())), len(STEPS))
