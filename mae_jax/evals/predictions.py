"""Predictions of each image, and the confusion matrix, as CSV and picture."""

import dataclasses
import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from mae_jax.data import sources
from mae_jax.evals import classification
from mae_jax.utils import atomic_write

COLUMNS = ("image", "label", "prediction", "probability", "label_probability")
# The most classes of confusion.png, of its numbers, and of confusion.csv.
MAX_PICTURE, MAX_NUMBERS, MAX_TABLE = 50, 20, 5000
_CELL = 0.42  # inches
_WIDEST = 11  # inches; cells are smaller if there are many


def files(
  scores: classification.Scores,
  source: sources.Source,
  class_names: Sequence[str],
) -> tuple[dict[str, bytes], str]:
  """Formats predictions.csv, confusion.csv and confusion.png.

  Args:
    scores: of the images of `source`.
    source: the images.
    class_names: names of all classes of the head.

  Returns:
    The contents by file name, and a line on files that are left out, or "".
  """
  result = {"predictions.csv": predictions_file(scores, source, class_names)}
  seen = np.union1d(scores.labels, scores.prediction[scores.prediction >= 0])
  number = f"there are {len(seen)} classes, more than"
  if len(seen) > MAX_TABLE:
    return result, f"no confusion matrix: {number} {MAX_TABLE}"
  matrix = Confusion.create(scores, class_names)
  result["confusion.csv"] = matrix.table_file()
  if len(seen) > MAX_PICTURE:
    return result, f"no confusion.png: {number} {MAX_PICTURE}"
  return result | {"confusion.png": matrix.picture_file()}, ""


def predictions_file(
  scores: classification.Scores,
  source: sources.Source,
  class_names: Sequence[str],
) -> bytes:
  """Formats a row for each image, in the order of the data, as CSV."""
  rows: list[Sequence[Any]] = [COLUMNS]
  for place in np.argsort(scores.ids, kind="stable"):
    answer = scores.prediction[place]
    rows.append(
      (
        source.name(int(scores.ids[place])),
        class_names[scores.labels[place]],
        class_names[answer] if answer >= 0 else "",
        scores.confidence[place],
        np.exp(-scores.loss[place]),
      )
    )
  return atomic_write.csv_rows(rows, "backslashreplace")


@dataclasses.dataclass(frozen=True)
class Confusion:
  """A confusion matrix of the classes that are a label or a prediction.

  Attributes:
    names: names of the K classes, in the order of the head.
    counts: int [K, K], images by true class (rows) and predicted class.
  """

  names: Sequence[str]
  counts: np.ndarray

  @classmethod
  def create(
    cls, scores: classification.Scores, class_names: Sequence[str]
  ) -> "Confusion":
    """Counts the images that have a prediction."""
    known = scores.prediction >= 0
    seen, places = np.unique(
      [scores.labels[known], scores.prediction[known]], return_inverse=True
    )
    counts = np.zeros((len(seen), len(seen)), np.int64)
    np.add.at(counts, tuple(places.reshape(2, -1)), 1)
    return cls([class_names[number] for number in seen], counts)

  def table_file(self) -> bytes:
    """Formats the counts as CSV: a row for each true class."""
    rows: list[Sequence[Any]] = [("true class", *self.names)]
    rows += [
      (name, *row)
      for name, row in zip(self.names, self.counts.tolist(), strict=True)
    ]
    return atomic_write.csv_rows(rows, "backslashreplace")

  def picture_file(self) -> bytes:
    """Draws the matrix as PNG."""
    file = io.BytesIO()
    with warnings.catch_warnings():
      # The font lacks some scripts, whose letters become boxes.
      warnings.filterwarnings("ignore", "Glyph .* missing from")
      # The picture grows with the names, so that none is cut off.
      self.draw().savefig(file, format="png", dpi=120, bbox_inches="tight")
    return file.getvalue()

  def draw(self) -> Figure:
    """Draws the figure; a color is the share of its row."""
    number = len(self.names)
    side = min(_CELL * max(number, 6), _WIDEST)
    figure = Figure(figsize=(1.15 * side, side))
    axes = figure.add_axes((0, 0, 1 / 1.15, 1))
    totals = self.counts.sum(axis=1, keepdims=True)
    shares = self.counts / np.maximum(totals, 1)
    # The square root shows rare errors too.
    scale = PowerNorm(0.5, vmin=0, vmax=1)
    image = axes.imshow(shares, cmap="Blues", norm=scale)
    bar = figure.colorbar(image, cax=figure.add_axes((0.9, 0, 0.025, 1)))
    bar.set_label("share of the true class")
    size = min(10, 72 * side / number * 0.75)
    names = [name if name.isprintable() else repr(name) for name in self.names]
    # A name with $ is no formula.
    style: dict[str, Any] = {"fontsize": size, "parse_math": False}
    short = max(map(len, names)) <= 3
    turned: dict[str, Any] = {"rotation": 0 if short else 45}
    if not short:
      turned |= {"ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(number), names, **style, **turned)
    axes.set_yticks(range(number), names, **style)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if number <= MAX_NUMBERS:
      for (row, column), count in np.ndenumerate(self.counts):
        dark = shares[row, column] > 0.3
        axes.text(
          column,
          row,
          f"{count}",
          ha="center",
          va="center",
          fontsize=8 if count < 10_000 else 6,
          color="white" if dark else "black" if count else "0.7",
        )
    return figure
