"""Tests of the reasons to doubt an accuracy."""

from __future__ import annotations

import re

import numpy as np
import pytest

from mae_jax.evals import results


@pytest.mark.parametrize(
  ("labels", "classes", "words"),
  [
    ([0, 0, 0], 1, "there is one class"),
    ([2, 2], 3, "all 2 evaluated images are of one class"),
    ([0, 1], 4, "2 evaluated images are fewer than the 4 classes: .* 50.0 %"),
    ([0, 1, 1], 3, ""),
    ([], 3, ""),
  ],
)
def test_reasons_to_doubt_an_accuracy(labels, classes, words):
  found = results.doubt(np.array(labels, int), classes)
  assert re.fullmatch(f"{words}.*" if words else "", found)
