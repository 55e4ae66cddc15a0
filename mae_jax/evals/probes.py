"""Linear probes and kNN with few and with all labels."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import numpy as np

from mae_jax.config import EvalConfig
from mae_jax.data import few_shot
from mae_jax.evals import results
from mae_jax.utils import signals

TITLES = {"linear": "linear probe", "knn": "kNN"}


@dataclasses.dataclass(frozen=True)
class Split:
  """A labeled set: named representations [N, D] of the same N examples."""

  features: Mapping[str, np.ndarray]
  labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Accuracy:
  """The accuracy of one classifier on one representation.

  Attributes:
    kind: a name in TITLES.
    shots: training images per class; 0 for all.
    name: name of the representation.
    trials: the accuracy with each choice of training images.
  """

  kind: str
  shots: int
  name: str
  trials: tuple[float, ...]

  @property
  def row(self) -> str:
    """The classifier's name in metrics."""
    return f"{self.kind}_{self.shots or 'all'}"

  @property
  def mean(self) -> float:
    """The mean over trials."""
    return float(np.mean(self.trials))

  @property
  def std(self) -> float | None:
    """The standard deviation over trials; None for a single trial."""
    return float(np.std(self.trials, ddof=1)) if len(self.trials) > 1 else None


def evaluate_probes(
  train: Split, test: Split, config: EvalConfig
) -> list[Accuracy]:
  """Evaluates linear probe and kNN at each number of labels.

  The choices of training images do not depend on the run's seed, so that runs
  are comparable.

  Args:
    train: features [N, D] by name, and labels [N].
    test: the same of held-out images.
    config: `shots`, `num_trials`, `probe_l2`, `knn_k` and `knn_temperature`.

  Returns:
    An Accuracy for each kind of probe, number of labels and name of features.
  """
  measures: dict[str, Callable[..., float]] = {
    "linear": functools.partial(probe_accuracy, l2=config.probe_l2),
    "knn": functools.partial(
      knn_accuracy, k=config.knn_k, temperature=config.knn_temperature
    ),
  }
  result = []
  most = np.unique(train.labels, return_counts=True)[1].max()
  # 0 means all images, and so does a number above the largest class.
  for count in dict.fromkeys(n if n < most else 0 for n in config.shots):
    subsets = [
      few_shot.choose_per_class(
        train.labels, count, np.random.default_rng([count, trial])
      )
      for trial in range(config.num_trials if count else 1)
    ]
    for name, features in train.features.items():
      held_out = (test.features[name], test.labels)
      train_sets = [(features[x], train.labels[x]) for x in subsets]
      for kind, measure in measures.items():
        trials = tuple(measure(each, held_out) for each in train_sets)
        result.append(Accuracy(kind, count, name, trials))
  return result


def scalars(accuracies: list[Accuracy]) -> dict[str, float]:
  """Returns means, and standard deviations if there are several trials."""
  result = {}
  for each in accuracies:
    result[f"{each.row}/{each.name}"] = each.mean
    if each.std is not None:
      result[f"{each.row}_std/{each.name}"] = each.std
  return result


def table(accuracies: list[Accuracy]) -> str:
  """Formats accuracies as a table: one row per classifier."""
  rows: dict[tuple[str, int], dict[str, Accuracy]] = {}
  for each in accuracies:
    rows.setdefault((each.kind, each.shots), {})[each.name] = each
  names = list(next(iter(rows.values())))
  lines = [f"{'held-out accuracy':<28}" + "".join(f"{n:>18}" for n in names)]
  for (kind, count), values in rows.items():
    title = f"{TITLES[kind]}, {results.label_count(count)}"
    cells = (results.percent(values[name].trials) for name in names)
    lines.append(f"{title:<28}" + "".join(f"{cell:>18}" for cell in cells))
  return "\n".join(lines)


def knn_accuracy(
  train: tuple[np.ndarray, np.ndarray],
  test: tuple[np.ndarray, np.ndarray],
  *,
  k: int,
  temperature: float,
) -> float:
  """Computes the accuracy of kNN with cosine similarity.

  Votes are weighted by exp(similarity / T), as in Wu et al. 2018 (arXiv
  1805.01978), section 3.4.

  Args:
    train: features [N, D] and labels [N].
    test: features [M, D] and labels [M].
    k: number of neighbors that vote, at most N.
    temperature: T.

  Returns:
    The accuracy on the M test examples.
  """
  # Imported here, because it would slow each start by most of a second.
  from sklearn.neighbors import KNeighborsClassifier

  def weights(distance: np.ndarray) -> np.ndarray:
    return np.exp(-distance / temperature)  # without the constant exp(1 / T)

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
  """Computes the accuracy of logistic regression on standardized features.

  A quick measure during and after pre-training. The paper's protocol is a
  separate task, "linprobe".

  Args:
    train: features [N, D] and labels [N].
    test: features [M, D] and labels [M].
    l2: weight of half the squared norm of the coefficients, relative to the sum
      (not the mean) of the N losses.

  Returns:
    The accuracy on the M test examples.
  """
  # Imported here for the same reason as in `knn_accuracy`.
  from sklearn.linear_model import LogisticRegression
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler

  classifier = make_pipeline(
    StandardScaler(), LogisticRegression(C=1 / l2, max_iter=1000)
  )
  return signals.call_interruptible(
    lambda: float(classifier.fit(*train).score(*test))
  )
