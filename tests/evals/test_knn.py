"""The kNN vote equals one written in loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mae_jax.evals import probes


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Samples three overlapping classes with uninformative vector lengths."""
  random = np.random.default_rng(seed)
  centers = np.random.default_rng(0).normal(size=(3, 5))
  labels = random.integers(0, 3, count)
  features = centers[labels] + 1.2 * random.normal(size=(count, 5))
  return features * random.uniform(0.1, 9, size=(count, 1)), labels


def vote(train, test, k: int, temperature: float) -> float:
  right = 0
  for feature, label in zip(*test, strict=True):
    similarities = [
      float(feature @ other) / math.sqrt(feature @ feature * (other @ other))
      for other in train[0]
    ]
    nearest = sorted(range(len(train[0])), key=lambda i: -similarities[i])[:k]
    votes: dict[int, float] = {}
    for i in nearest:
      weight = math.exp(similarities[i] / temperature)
      votes[train[1][i]] = votes.get(train[1][i], 0) + weight
    right += max(votes, key=lambda c: votes[c]) == label
  return right / len(test[1])


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_accuracy_equals_a_loop(k: int, temperature: float):
  train, test = draw(60, 1), draw(90, 2)
  got = probes.knn_accuracy(train, test, k=k, temperature=temperature)
  assert got == pytest.approx(vote(train, test, k, temperature), abs=1e-9)
  assert 0.4 < got < 0.95


def test_settings_matter():
  train, test = draw(60, 1), draw(90, 2)
  found = {
    probes.knn_accuracy(train, test, k=k, temperature=t)
    for k, t in ((1, 0.07), (20, 0.07), (20, 100.0))
  }
  assert len(found) == 3


def test_more_neighbors_than_examples_are_all_of_them():
  train, test = draw(7, 1), draw(20, 2)
  got = probes.knn_accuracy(train, test, k=100, temperature=0.07)
  assert got == pytest.approx(vote(train, test, 7, 0.07), abs=1e-9)
