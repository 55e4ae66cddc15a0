"""The table of probes at few and at all labels, beside raw pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from mae_jax.config import EvalConfig
from mae_jax.data import few_shot
from mae_jax.utils import signals

TITLES = {"linear": "linear probe", "knn": "kNN"}


@dataclasses.dataclass(frozen=True)
class Split:
  """A labeled set: named representations [N, D] of the same N examples."""

  features: Mapping[str, np.ndarray]
  labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Accuracy:
  """Of one classifier on one representation.

  Attributes:
    kind: a name in TITLES.
    shots: training images a class; 0 for all.
    name: of the representation.
    draws: the accuracy with each choice of training images.
  """

  kind: str
  shots: int
  name: str
  draws: tuple[float, ...]

  @property
  def row(self) -> str:
    """What it is called among the metrics."""
    return f"{self.kind}_{self.shots or 'all'}"

  @property
  def mean(self) -> float:
    """Over the choices."""
    return float(np.mean(self.draws))

  @property
  def spread(self) -> float | None:
    """The standard deviation of a choice; None of a single one."""
    return float(np.std(self.draws, ddof=1)) if len(self.draws) > 1 else None


def few_labels(train: Split, test: Split, config: EvalConfig) -> list[Accuracy]:
  """Accuracies of linear probe and kNN at each number of labels.

  The choices do not depend on the run's seed, so that runs compare.

  Args:
    train: what the classifiers see.
    test: what they are scored on.
    config: `shots`, `draws` and the settings of the two classifiers.
  """
  result = []
  most = np.unique(train.labels, return_counts=True)[1].max()
  # 0 stands for all, and so does what is more than there are.
  for count in dict.fromkeys(n if n < most else 0 for n in config.shots):
    subsets = [
      few_shot.choose_per_class(
        train.labels, count, np.random.default_rng([count, draw])
      )
      for draw in range(config.num_trials if count else 1)
    ]
    for name, features in train.features.items():
      held_out = (test.features[name], test.labels)
      seen = [(features[subset], train.labels[subset]) for subset in subsets]
      linear = [
        probe_accuracy(each, held_out, l2=config.probe_l2) for each in seen
      ]
      near = [
        knn_accuracy(
          each,
          held_out,
          k=config.knn_k,
          temperature=config.knn_temperature,
        )
        for each in seen
      ]
      result.append(Accuracy("linear", count, name, tuple(linear)))
      result.append(Accuracy("knn", count, name, tuple(near)))
  return result


def scalars(accuracies: list[Accuracy]) -> dict[str, float]:
  """Means, and standard deviations where there are several choices."""
  result = {}
  for each in accuracies:
    result[f"{each.row}/{each.name}"] = each.mean
    if each.spread is not None:
      result[f"{each.row}_std/{each.name}"] = each.spread
  return result


def table(accuracies: list[Accuracy]) -> str:
  """The result of `few_labels` as text: a row a classifier."""
  rows: dict[tuple[str, int], dict[str, Accuracy]] = {}
  for each in accuracies:
    rows.setdefault((each.kind, each.shots), {})[each.name] = each
  names = list(next(iter(rows.values())))
  lines = [f"{'held-out accuracy':<28}" + "".join(f"{n:>18}" for n in names)]
  for (kind, count), values in rows.items():
    labels = f"{count} per class" if count else "all labels"
    cells = "".join(f"{_percent(values[name]):>18}" for name in names)
    lines.append(f"{f'{TITLES[kind]}, {labels}':<28}{cells}")
  return "\n".join(lines)


def _percent(accuracy: Accuracy) -> str:
  text = f"{100 * accuracy.mean:.1f}"
  if accuracy.spread is not None:
    text += f" ± {100 * accuracy.spread:.1f}"
  return f"{text} %"


def knn_accuracy(
  train: tuple[np.ndarray, np.ndarray],
  test: tuple[np.ndarray, np.ndarray],
  *,
  k: int,
  temperature: float,
) -> float:
  """Accuracy of a vote of cosine neighbors weighted exp(similarity / T).

  The classifier of Wu et al. 2018 (arXiv 1805.01978), section 3.4.

  Args:
    train: features [N, D] and labels [N].
    test: features [M, D] and labels [M].
    k: neighbors that vote, at most N.
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
  return signals.call_interruptible(
    lambda: float(classifier.fit(*train).score(*test))
  )


def probe_accuracy(
  train: tuple[np.ndarray, np.ndarray],
  test: tuple[np.ndarray, np.ndarray],
  *,
  l2: float,
) -> float:
  """Accuracy of logistic regression on standardized features.

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
  return signals.call_interruptible(
    lambda: float(classifier.fit(*train).score(*test))
  )
