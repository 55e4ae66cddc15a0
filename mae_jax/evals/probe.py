"""A linear classifier on frozen features."""

from __future__ import annotations

import numpy as np


def probe_accuracy(
  train: tuple[np.ndarray, np.ndarray],
  test: tuple[np.ndarray, np.ndarray],
  *,
  l2: float,
) -> float:
  """Accuracy of logistic regression on standardised features.

  A quick measure for during and after pre-training; the protocol of the paper
  is a task of its own.

  Args:
    train: features [N, D] and labels [N].
    test: features [M, D] and labels [M].
    l2: weight of half the squared norm of the coefficients, against the sum
      (not the mean) of the N losses.

  Returns:
    The share of the M examples whose class is right.
  """
  # As in `knn`.
  from sklearn.linear_model import LogisticRegression
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler

  classifier = make_pipeline(
    StandardScaler(), LogisticRegression(C=1 / l2, max_iter=1000)
  )
  return float(classifier.fit(*train).score(*test))
