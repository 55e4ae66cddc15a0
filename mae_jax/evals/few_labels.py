"""The table of probes at few and at all labels, beside raw pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from mae_jax import config as config_lib
from mae_jax.evals import knn, probe


@dataclasses.dataclass(frozen=True)
class Split:
  """A labelled set: named representations [N, D] of the same N examples."""

  features: Mapping[str, np.ndarray]
  labels: np.ndarray


def draw_subset(
  labels: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
  """Positions of `count` examples, as even over the classes as can be.

  Args:
    labels: [N] class numbers.
    count: how many; 0 or at least N for all.
    rng: decides which.

  Returns:
    Sorted positions.
  """
  if not 0 < count < len(labels):
    return np.arange(len(labels))
  # Taking the first of each class in a random order, then the second of each,
  # and so on, is balanced whatever the class sizes.
  order = rng.permutation(len(labels))
  rank = np.empty(len(labels), np.int64)
  for label in np.unique(labels):
    members = order[labels[order] == label]
    rank[members] = np.arange(len(members))
  place = np.empty(len(labels), np.int64)
  place[order] = np.arange(len(labels))
  return np.sort(np.lexsort((place, rank))[:count])


def few_labels(
  train: Split, test: Split, config: config_lib.Eval
) -> dict[str, float]:
  """Accuracies of linear probe and kNN at each number of labels.

  The subsets do not depend on the run's seed, so that runs compare.

  Args:
    train: what the classifiers see.
    test: what they are scored on.
    config: `labels`, `draws` and the settings of the two classifiers.

  Returns:
    Means over the draws, "<classifier>_<labels>/<representation>", where
    <labels> is a number or "all".
  """
  result = {}
  total = len(train.labels)
  # 0 stands for all, and so does what is more than there are.
  for count in dict.fromkeys(n if n < total else 0 for n in config.labels):
    is_all = count == 0
    subsets = [
      draw_subset(train.labels, count, np.random.default_rng([count, draw]))
      for draw in range(1 if is_all else config.draws)
    ]
    for name, features in train.features.items():
      linear, near = [], []
      held_out = (test.features[name], test.labels)
      for subset in subsets:
        seen = (features[subset], train.labels[subset])
        linear.append(probe.probe_accuracy(seen, held_out, l2=config.probe_l2))
        near.append(
          knn.knn_accuracy(
            seen,
            held_out,
            k=config.knn_k,
            temperature=config.knn_temperature,
          )
        )
      labels = count or "all"
      result[f"linear_{labels}/{name}"] = float(np.mean(linear))
      result[f"knn_{labels}/{name}"] = float(np.mean(near))
  return result


def table(accuracies: Mapping[str, float]) -> str:
  """The result of `few_labels` as text: a row a classifier."""
  rows: dict[str, dict[str, float]] = {}
  for key, accuracy in accuracies.items():
    row, name = key.split("/")
    rows.setdefault(row, {})[name] = accuracy
  names = list(next(iter(rows.values())))
  titles = {"linear": "linear probe", "knn": "kNN"}
  lines = [f"{'held-out accuracy':<28}" + "".join(f"{n:>14}" for n in names)]
  for row, values in rows.items():
    kind, labels = row.split("_")
    title = f"{titles[kind]}, {labels} labels"
    cells = "".join(f"{100 * values[name]:>12.1f} %" for name in names)
    lines.append(f"{title:<28}{cells}")
  return "\n".join(lines)
