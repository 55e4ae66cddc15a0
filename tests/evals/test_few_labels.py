"""Subsets are balanced, exact and the same every time; the table is whole."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import pytest

from mae_jax.evals import few_labels, knn, probe
from tests import tiny

LABELS = np.random.default_rng(0).permutation(
  np.repeat(np.arange(5), [40, 30, 20, 8, 2])
)


def draw(count: int, seed: int = 0) -> np.ndarray:
  return few_labels.draw_subset(LABELS, count, np.random.default_rng(seed))


@pytest.mark.parametrize("count", [1, 3, 5, 10, 12, 25, 60, 99])
def test_a_subset_is_exact_and_balanced(count: int):
  subset = draw(count)
  assert len(set(subset.tolist())) == len(subset) == count
  assert (np.diff(subset) > 0).all()
  assert subset.min() >= 0
  assert subset.max() < len(LABELS)
  found = collections.Counter(LABELS[subset].tolist())
  whole = collections.Counter(LABELS.tolist())
  # As even as can be: a class has one less than another only if it has no
  # more, or if the count does not come out even.
  most = max(found.values())
  for label, members in whole.items():
    assert found[label] >= min(members, most - 1)


@pytest.mark.parametrize("count", [0, 100, 1000, -1])
def test_all_of_them(count: int):
  np.testing.assert_array_equal(draw(count), np.arange(100))


def test_a_draw_is_deterministic_and_draws_differ():
  np.testing.assert_array_equal(draw(10, 3), draw(10, 3))
  subsets = {tuple(draw(10, seed)) for seed in range(20)}
  assert len(subsets) == 20


def test_every_example_can_be_drawn():
  seen = set()
  for seed in range(200):
    seen |= set(draw(20, seed).tolist())
  assert seen == set(range(100))


def split(seed: int, count: int) -> few_labels.Split:
  random = np.random.default_rng(seed)
  labels = np.arange(count) % 3
  centres = np.random.default_rng(9).normal(size=(3, 6))
  good = centres[labels] + 0.6 * random.normal(size=(count, 6))
  return few_labels.Split(
    {"MAE": good, "raw pixels": good + 2 * random.normal(size=good.shape)},
    labels,
  )


def test_accuracies_are_means_over_draws_of_the_two_classifiers():
  config = dataclasses.replace(
    tiny.config().eval, labels=(6, 0), draws=3, knn_k=4
  )
  train, test = split(1, 60), split(2, 90)
  result = few_labels.few_labels(train, test, config)
  assert list(result) == [
    f"{kind}_{labels}/{name}"
    for labels in ("6", "all")
    for name in ("MAE", "raw pixels")
    for kind in ("linear", "knn")
  ]
  for name in ("MAE", "raw pixels"):
    held_out = (test.features[name], test.labels)
    linear, near = [], []
    for each in range(3):
      rng = np.random.default_rng([6, each])
      subset = few_labels.draw_subset(train.labels, 6, rng)
      seen = (train.features[name][subset], train.labels[subset])
      linear.append(probe.probe_accuracy(seen, held_out, l2=config.probe_l2))
      near.append(
        knn.knn_accuracy(
          seen, held_out, k=4, temperature=config.knn_temperature
        )
      )
    assert result[f"linear_6/{name}"] == pytest.approx(sum(linear) / 3)
    assert result[f"knn_6/{name}"] == pytest.approx(sum(near) / 3)
  assert result["linear_all/MAE"] > result["linear_all/raw pixels"]
  assert few_labels.few_labels(train, test, config) == result


def test_as_many_labels_as_there_are_is_all_and_said_once():
  config = dataclasses.replace(tiny.config().eval, labels=(60, 0, 99), draws=2)
  result = few_labels.few_labels(split(1, 60), split(2, 30), config)
  assert {name.split("/")[0] for name in result} == {"linear_all", "knn_all"}


def test_table():
  text = few_labels.table(
    {
      "linear_50/MAE": 0.861,
      "knn_50/MAE": 0.5,
      "linear_50/raw pixels": 0.7833,
      "knn_50/raw pixels": 0.25,
      "linear_all/MAE": 1.0,
      "knn_all/MAE": 0.0,
      "linear_all/raw pixels": 0.9,
      "knn_all/raw pixels": 0.8,
    }
  )
  rows = [line.split() for line in text.splitlines()]
  assert rows == [
    ["held-out", "accuracy", "MAE", "raw", "pixels"],
    ["linear", "probe,", "50", "labels", "86.1", "%", "78.3", "%"],
    ["kNN,", "50", "labels", "50.0", "%", "25.0", "%"],
    ["linear", "probe,", "all", "labels", "100.0", "%", "90.0", "%"],
    ["kNN,", "all", "labels", "0.0", "%", "80.0", "%"],
  ]
  assert len({len(line) for line in text.splitlines()}) == 1
