"""Probes with few labels report the classifiers' own accuracies."""

from __future__ import annotations

import dataclasses
import statistics

import numpy as np
import pytest

from mae_jax.data import few_shot
from mae_jax.evals import probes
from tests.helpers import tiny


def split(seed: int, count: int) -> probes.Split:
  random = np.random.default_rng(seed)
  labels = np.arange(count) % 3
  centers = np.random.default_rng(9).normal(size=(3, 6))
  good = centers[labels] + 0.6 * random.normal(size=(count, 6))
  return probes.Split(
    {"MAE": good, "raw pixels": good + 2 * random.normal(size=good.shape)},
    labels,
  )


def test_accuracies_of_each_choice_and_classifier():
  config = dataclasses.replace(
    tiny.config().eval, shots=(2, 0), num_trials=3, knn_k=4
  )
  train, test = split(1, 60), split(2, 90)
  result = probes.evaluate_probes(train, test, config)
  assert [(each.row, each.name) for each in result] == [
    (f"{kind}_{labels}", name)
    for labels in ("2", "all")
    for name in ("MAE", "raw pixels")
    for kind in ("linear", "knn")
  ]
  found = probes.scalars(result)
  for name in ("MAE", "raw pixels"):
    held_out = (test.features[name], test.labels)
    linear, near = [], []
    for each in range(3):
      rng = np.random.default_rng([2, each])
      subset = few_shot.choose_per_class(train.labels, 2, rng)
      seen = (train.features[name][subset], train.labels[subset])
      linear.append(probes.probe_accuracy(seen, held_out, l2=config.probe_l2))
      near.append(
        probes.knn_accuracy(
          seen, held_out, k=4, temperature=config.knn_temperature
        )
      )
    for row, draws in (("linear_2", linear), ("knn_2", near)):
      assert found[f"{row}/{name}"] == pytest.approx(np.mean(draws))
      std = found[f"{row}_std/{name}"]
      assert std == pytest.approx(statistics.stdev(draws))
  assert found["linear_all/MAE"] > found["linear_all/raw pixels"]
  assert "linear_all_std/MAE" not in found
  assert probes.evaluate_probes(train, test, config) == result


def test_as_many_labels_as_there_are_is_all_and_said_once():
  config = dataclasses.replace(
    tiny.config().eval, shots=(20, 0, 33), num_trials=2
  )
  result = probes.evaluate_probes(split(1, 60), split(2, 30), config)
  assert {each.row for each in result} == {"linear_all", "knn_all"}


def test_table():
  def accuracy(kind, count, name, *draws):
    return probes.Accuracy(kind, count, name, draws)

  text = probes.table(
    [
      accuracy("linear", 5, "MAE", 0.861, 0.881),
      accuracy("knn", 5, "MAE", 0.5, 0.5),
      accuracy("linear", 5, "raw pixels", 0.7, 0.8),
      accuracy("knn", 5, "raw pixels", 0.25, 0.25),
      accuracy("linear", 0, "MAE", 1.0),
      accuracy("knn", 0, "MAE", 0.0),
      accuracy("linear", 0, "raw pixels", 0.9),
      accuracy("knn", 0, "raw pixels", 0.8),
    ]
  )
  rows = [" ".join(line.split()) for line in text.splitlines()]
  assert rows == [
    "held-out accuracy MAE raw pixels",
    "linear probe, 5 per class 87.1 ± 1.4 % 75.0 ± 7.1 %",
    "kNN, 5 per class 50.0 ± 0.0 % 25.0 ± 0.0 %",
    "linear probe, all labels 100.0 % 90.0 %",
    "kNN, all labels 0.0 % 80.0 %",
  ]
  assert len({len(line) for line in text.splitlines()}) == 1
