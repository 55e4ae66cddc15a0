"""Weighted nearest neighbours on frozen features."""

from __future__ import annotations

import numpy as np


def knn_accuracy(
  train: tuple[np.ndarray, np.ndarray],
  test: tuple[np.ndarray, np.ndarray],
  *,
  k: int,
  temperature: float,
) -> float:
  """Accuracy of a vote of cosine neighbours weighted exp(similarity / T).

  The classifier of Wu et al. 2018 (arXiv 1805.01978), section 3.4.

  Args:
    train: features [N, D] and labels [N].
    test: features [M, D] and labels [M].
    k: neighbours that vote, at most N.
    temperature: T.

  Returns:
    The share of the M examples whose class is right.
  """
  # Not needed to train; with it a start would take most of a second more.
  from sklearn.neighbors import KNeighborsClassifier

  def weights(distance: np.ndarray) -> np.ndarray:
    return np.exp(-distance / temperature)  # exp(1 / T) is common to all

  classifier = KNeighborsClassifier(
    n_neighbors=min(k, len(train[1])),
    metric="cosine",
    algorithm="brute",
    weights=weights,
  )
  return float(classifier.fit(*train).score(*test))
