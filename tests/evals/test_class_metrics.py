"""Metrics that weight classes equally, by definition and by scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from mae_jax.evals import class_metrics


def draw(classes: int, count: int = 60):
  """Returns labels and coarse probabilities, so that many are equal."""
  random = np.random.default_rng(5)
  labels = random.permutation(np.arange(count) % classes)
  shares = random.integers(1, 5, (count, classes)).astype(float)
  shares[np.arange(count), labels] += random.integers(0, 3, count)
  return labels, shares / shares.sum(axis=1, keepdims=True)


def plain_auc(labels, probabilities, answers) -> float:
  """Compares every pair of an image of the class and another image."""
  areas = []
  for answer in answers:
    column = probabilities[:, answer]
    mine, other = column[labels == answer], column[labels != answer]
    wins = np.sign(mine[:, None] - other) / 2 + 0.5
    areas.append(wins.mean())
  return np.mean(areas)


def test_auc_of_all_classes():
  labels, probabilities = draw(4)
  found = class_metrics.auc_macro(labels, probabilities, np.arange(4))
  assert found == pytest.approx(plain_auc(labels, probabilities, range(4)))
  theirs = metrics.roc_auc_score(labels, probabilities, multi_class="ovr")
  assert found == pytest.approx(theirs)


def test_auc_of_two_classes_and_of_labels_that_are_missing():
  labels, probabilities = draw(2)
  theirs = metrics.roc_auc_score(labels, probabilities[:, 1])
  labels = np.append(labels, -1)
  probabilities = np.append(probabilities, [[1, 0]], axis=0)
  found = class_metrics.auc_macro(labels, probabilities, np.arange(2))
  assert found == pytest.approx(theirs)


def test_auc_of_some_answers():
  labels, probabilities = draw(4)
  chosen = np.isin(labels, (1, 3))
  labels, probabilities = labels[chosen], probabilities[chosen]
  found = class_metrics.auc_macro(labels, probabilities, np.array([1, 3]))
  assert found == pytest.approx(plain_auc(labels, probabilities, (1, 3)))
  for answers in (np.arange(4), np.array([1])):
    assert class_metrics.auc_macro(labels, probabilities, answers) is None
  probabilities[0] = np.nan
  assert (
    class_metrics.auc_macro(labels, probabilities, np.array([1, 3])) is None
  )


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_balanced_accuracy_and_f1():
  """Class 2 has no images but predictions, and class 3 has neither."""
  labels = np.array([0, 0, 0, 0, 1, 1, 4])
  predictions = np.array([0, 0, 0, 1, 1, 2, 0])
  balanced, f1 = class_metrics.by_class(labels, predictions)
  assert balanced == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
  assert f1 == pytest.approx((6 / 8 + 2 / 4 + 0 + 0) / 4)
  theirs = metrics.f1_score(
    labels, predictions, average="macro", zero_division=0
  )
  assert f1 == pytest.approx(theirs)
  assert balanced == pytest.approx(
    metrics.balanced_accuracy_score(labels, predictions)
  )


def test_an_image_without_a_prediction_is_wrong():
  labels, predictions = np.array([0, 0, 1]), np.array([0, -1, 1])
  balanced, f1 = class_metrics.by_class(labels, predictions)
  assert balanced == pytest.approx((1 / 2 + 1) / 2)
  assert f1 == pytest.approx((2 / 3 + 1) / 2)
