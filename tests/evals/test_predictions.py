"""Tables and pictures of predictions against counting one image at a time."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from mae_jax.data import sources
from mae_jax.evals import classification, predictions

NAMES = ("ant", "b\udc80e", "$c$, 猫", "never", "guess", "no answer")


def draw(labels, answers, classes: int = len(NAMES)):
  """Returns scores in a mixed order, and their source."""
  labels, answers = np.array(labels), np.array(answers)
  number = len(labels)
  source = sources.Arrays.create(np.zeros((number, 2, 2, 1), np.uint8), {})
  order = np.random.default_rng(0).permutation(number)
  scores = classification.Scores(
    labels=labels,
    loss=-np.log(np.arange(1, number + 1) / (2 * number)),
    rank=np.where(answers == labels, 0, 1),
    prediction=answers,
    confidence=np.where(answers < 0, np.nan, 0.5 + labels / 100),
    ids=np.arange(number),
    allowed=np.ones(classes, bool),
  )
  mixed = {
    name: getattr(scores, name)[order]
    for name in ("labels", "loss", "rank", "prediction", "confidence", "ids")
  }
  return classification.Scores(**mixed, allowed=scores.allowed), source


def read(content: bytes) -> list[list[str]]:
  return list(csv.reader(io.StringIO(content.decode())))


LABELS = [0, 0, 1, 2, 2, 2, 5]
ANSWERS = [0, 1, 1, 2, 0, 4, -1]


def test_each_image_has_a_row_in_the_order_of_the_data():
  files, note = predictions.files(*draw(LABELS, ANSWERS), NAMES)
  assert not note
  assert list(files) == ["predictions.csv", "confusion.csv", "confusion.png"]
  head, *rows = read(files["predictions.csv"])
  assert head == [
    "image", "label", "prediction", "probability", "label_probability",
  ]  # fmt: skip
  shown = ["ant", "b\\udc80e", "$c$, 猫", "never", "guess", "no answer", ""]
  for number, (row, label, answer) in enumerate(
    zip(rows, LABELS, ANSWERS, strict=True)
  ):
    assert row[:3] == [str(number), shown[label], shown[answer]]
    assert float(row[4]) == pytest.approx((number + 1) / 14)
    if answer >= 0:
      assert float(row[3]) == pytest.approx(0.5 + label / 100)
  assert rows[-1][3] == "nan"


def test_confusion_of_the_classes_that_occur():
  files, _ = predictions.files(*draw(LABELS, ANSWERS), NAMES)
  head, *rows = read(files["confusion.csv"])
  names = ["ant", "b\\udc80e", "$c$, 猫", "guess"]
  assert head == ["true class", *names]
  assert [row[0] for row in rows] == names
  wanted = metrics.confusion_matrix(LABELS[:-1], ANSWERS[:-1])
  np.testing.assert_array_equal([[*map(int, row[1:])] for row in rows], wanted)


def test_the_picture_has_names_and_counts():
  names = [*NAMES[:3], "a long name that is not cut off" * 2]
  matrix = predictions.Confusion(names, np.arange(16).reshape(4, 4))
  axes = matrix.draw().axes[0]
  assert (axes.get_xlabel(), axes.get_ylabel()) == (
    "predicted class",
    "true class",
  )
  for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
    shown = [each.get_text() for each in labels]
    assert shown == ["ant", "'b\\udc80e'", *names[2:]]
  counts = {
    (round(x), round(y)): text.get_text()
    for text in axes.texts
    for x, y in [text.get_position()]
  }
  assert counts == {(k % 4, k // 4): str(k) for k in range(16)}
  long, short = (
    Image.open(io.BytesIO(each.picture_file())).width
    for each in (matrix, predictions.Confusion("abcd", matrix.counts))
  )
  assert long > short + 300


@pytest.mark.parametrize(
  ("classes", "files", "text"),
  [
    (50, 3, ""),
    (51, 2, "no confusion.png: there are 51 classes, more than 50"),
    (5001, 1, "no confusion matrix: there are 5001 classes, more than 5000"),
  ],
)
def test_many_classes(classes, files, text):
  labels = np.arange(classes)
  scores, source = draw(labels, labels, classes)
  found, note = predictions.files(scores, source, [*map(str, labels)])
  assert len(found) == files
  assert note == text
  assert len(read(found["predictions.csv"])) == classes + 1
