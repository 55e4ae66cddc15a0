"""Accuracy per class, as a table of text and as CSV."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mae_jax.evals import classification
from mae_jax.utils import atomic_write

# The table shows up to MAX_ROWS classes, or else the best and the worst.
MAX_ROWS, BEST, WORST = 20, 5, 10


class Row(NamedTuple):
  """One class that has images."""

  name: str
  images: int
  accuracy: float


def rows(
  scores: classification.Scores, class_names: Sequence[str]
) -> list[Row]:
  """Returns the classes that have images, in the order of the head."""
  number = len(class_names)
  count = np.bincount(scores.labels, minlength=number)
  right = np.bincount(scores.labels[scores.rank < 1], minlength=number)
  return [
    Row(name, int(total), float(correct / total))
    for name, total, correct in zip(class_names, count, right, strict=True)
    if total
  ]


def table(found: Sequence[Row]) -> str:
  """Formats all classes, or the best and the worst if there are many."""
  if len(found) <= MAX_ROWS:
    return _lines("class", found)
  ordered = sorted(found, key=lambda row: row.accuracy, reverse=True)
  best = _lines(f"{BEST} best of {len(found)} classes", ordered[:BEST])
  worst = _lines(f"{WORST} worst", ordered[-WORST:])
  return f"{best}\n{worst}"


def table_file(found: Sequence[Row]) -> bytes:
  """Formats all classes as CSV; the name of a folder may be invalid Unicode."""
  header = ("class", "images", "accuracy")
  return atomic_write.csv_rows([header, *found], "backslashreplace")


def _lines(title: str, found: Sequence[Row]) -> str:
  lines = [f"{title:<28}{'images':>10}{'accuracy':>12}"]
  for row in found:
    name = row.name if row.name.isprintable() else repr(row.name)
    percent = f"{100 * row.accuracy:.1f} %"
    lines.append(f"{name:<28}{row.images:>10}{percent:>12}")
  return "\n".join(lines)
