"""Ranks and losses equal their definitions, and classes match by name."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.evals import classification, per_class
from mae_jax.utils.errors import ConfigError


def draw(count: int = 40, classes: int = 7):
  random = np.random.default_rng(3)
  logits = 3 * random.normal(size=(count, classes)).astype(np.float32)
  return logits, random.integers(0, classes, count)


@pytest.mark.parametrize("allowed", [None, (0, 2, 3, 6), (5,)])
def test_loss_and_rank_equal_a_plain_loop(allowed):
  logits, labels = draw()
  classes = range(7) if allowed is None else allowed
  kept = np.isin(labels, classes)
  logits, labels = logits[kept], labels[kept]
  mask = (
    None if allowed is None else jnp.isin(jnp.arange(7), jnp.array(allowed))
  )
  found = classification.score(jnp.asarray(logits), jnp.asarray(labels), mask)
  for row, label, loss, rank in zip(
    logits, labels, found["loss"], found["rank"], strict=True
  ):
    among = [np.float64(row[k]) for k in classes]
    total = np.log(np.sum(np.exp(among)))
    assert float(loss) == pytest.approx(total - row[label], abs=1e-5)
    assert int(rank) == sum(each > row[label] for each in among)
  assert len(labels)


def test_what_is_no_number_is_right_for_nothing_unless_it_is_left_out():
  logits, labels = jnp.array([[1.0, 2.0, jnp.nan]]), jnp.array([1])
  assert int(classification.score(logits, labels)["rank"][0]) == 1
  allowed = jnp.array([True, True, False])
  found = classification.score(logits, labels, allowed)
  assert int(found["rank"][0]) == 0
  assert float(found["loss"][0]) == pytest.approx(np.log(1 + np.exp(-1)))


def test_classes_go_by_name():
  numbers = classification.match_classes(("cat", "ant"), ("ant", "bee", "cat"))
  np.testing.assert_array_equal(numbers, [2, 0])


def test_a_class_that_is_not_known():
  with pytest.raises(ConfigError) as error:
    classification.match_classes(("ant", "beee", "dog"), ("ant", "bee", "cat"))
  assert str(error.value).startswith(
    "2 of the data's 3 classes, such as 'beee', are not among the 3 classes "
    "of the checkpoint: did you mean 'bee'?"
  )


def scores(labels, right) -> classification.Scores:
  labels, right = np.array(labels), np.array(right)
  return classification.Scores(labels, np.ones(len(labels)), 1 - right, 0)


def test_accuracy_class_by_class():
  found = per_class.rows(
    scores([0, 2, 2, 2, 0], [1, 1, 0, 0, 1]), ("ant", "bee", "c\udc80t")
  )
  assert found == [("ant", 2, 1.0), ("c\udc80t", 3, pytest.approx(1 / 3))]
  assert [line.split() for line in per_class.table(found).splitlines()] == [
    ["class", "images", "accuracy"],
    ["ant", "2", "100.0", "%"],
    ["'c\\udc80t'", "3", "33.3", "%"],
  ]
  lines = per_class.table_file(found).decode().splitlines()
  assert lines[:2] == ["class,images,accuracy", "ant,2,1.0"]
  assert lines[2].startswith("c\\udc80t,3,0.333")


def test_of_many_classes_the_best_and_the_worst_are_shown():
  right = np.arange(30)[:, None] > np.arange(30)  # class k: k of 30
  found = per_class.rows(
    scores(np.repeat(np.arange(30), 30), right.reshape(-1).astype(int)),
    [f"c{k}" for k in range(30)],
  )
  lines = per_class.table(found).splitlines()
  assert lines[0].startswith("5 best of 30 classes")
  assert [line.split()[0] for line in lines[1:6]] == [
    f"c{k}" for k in (29, 28, 27, 26, 25)
  ]
  assert lines[6].startswith("10 worst")
  assert [line.split()[0] for line in lines[7:]] == [
    f"c{k}" for k in range(9, -1, -1)
  ]
  assert lines[-1].split() == ["c0", "30", "0.0", "%"]


def test_of_equal_logits_the_first_is_the_answer():
  """A network with constant logits is correct only by chance."""
  found = classification.score(jnp.zeros((3, 4)), jnp.array([0, 1, 3]))
  np.testing.assert_array_equal(found["rank"], [0, 1, 3])


@pytest.mark.parametrize(
  ("labels", "rank", "loss", "text"),
  [
    ([0, 0, 0, 1], [0, 0, 0, 1], 0.1, "75.0 %, is not above 75.0 %"),
    ([0, 0, 0, 1], [0, 0, 1, 1], 0.1, "50.0 %, is not above 75.0 %"),
    ([0, 0, 1, 1], [0, 0, 0, 1], 0.69, "0.690, is that of equal probabilities"),
    ([0, 0, 1, 1], [0, 0, 0, 1], 0.6, ""),
    ([], [], 0.6, ""),
    ([0, 0], [0, 0], 0.1, ""),
  ],
)
def test_a_classifier_that_learned_nothing(labels, rank, loss, text):
  scores = classification.Scores(
    np.array(labels, int), np.full(len(rank), loss), np.array(rank, int), 0
  )
  assert text in classification.nothing_learned(scores, 2)
  assert bool(classification.nothing_learned(scores, 2)) == bool(text)
  assert not classification.nothing_learned(scores, 1)
