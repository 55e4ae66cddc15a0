"""The results of evaluations."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Report:
  """The results of an evaluation during a run.

  Attributes:
    scalars: metrics by name.
    pictures: [H, W, 3] uint8 images by name.
    text: a table to print, or "".
    warning: what makes the results doubtful, or "".
  """

  scalars: Mapping[str, float]
  pictures: Mapping[str, np.ndarray]
  text: str
  warning: str = ""


@dataclasses.dataclass(frozen=True)
class EvalResult:
  """The results of `--config.task=evaluate`.

  Attributes:
    text: tables to print.
    scalars: metrics by name, as in metrics.jsonl.
    info: a description of the evaluation, as JSON content.
    files: contents of further files by name.
  """

  text: str
  scalars: Mapping[str, float]
  info: Mapping[str, Any]
  files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


def doubt(labels: np.ndarray, num_classes: int) -> str:
  """Explains why an accuracy means little; "" if there is no such reason.

  Args:
    labels: [N], the labels of the evaluated images.
    num_classes: number of possible answers.
  """
  total = len(labels)
  if num_classes < 2:
    return "there is one class, so that every answer is correct"
  if total and (labels == labels[0]).all():
    return (
      f"all {total} evaluated images are of one class: their accuracy says "
      "nothing of the other classes"
    )
  if 0 < total < num_classes:
    return (
      f"{total} evaluated images are fewer than the {num_classes} classes: one "
      f"image changes the accuracy by {100 / total:.1f} %"
    )
  return ""


GUESS = "always the largest class"


def guess(labels: np.ndarray) -> float:
  """Returns the accuracy of `GUESS` on images of labels [N].

  Images without a label (-1) do not count.
  """
  labels = labels[labels >= 0]
  return float(np.bincount(labels).max() / len(labels))


def label_count(shots: int) -> str:
  """Describes the number of labels, 0 for all."""
  return f"{shots} per class" if shots else "all labels"


def percent(trials: Sequence[float] | np.ndarray) -> str:
  """Formats the mean of accuracies, and of several the standard deviation."""
  text = f"{100 * np.mean(trials):.1f}"
  if len(trials) > 1:
    text += f" ± {100 * np.std(trials, ddof=1):.1f}"
  return f"{text} %"
