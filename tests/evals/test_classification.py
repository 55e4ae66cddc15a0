"""Ranks and losses equal their definitions, and classes match by name."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
import torchvision

from mae_jax.evals import class_matching, classification, imagenet, per_class
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
  everything, allowed = jnp.ones(3, bool), jnp.array([True, True, False])
  for keep in (False, True):
    found = classification.predict(logits, everything, keep)
    assert found["prediction"].tolist() == [-1]
    assert classification.predict(logits, allowed, keep)["prediction"] == 1
  found = classification.score(logits, labels, allowed)
  assert int(found["rank"][0]) == 0
  assert float(found["loss"][0]) == pytest.approx(np.log(1 + np.exp(-1)))


def test_classes_go_by_name():
  numbers = class_matching.match_classes(("cat", "ant"), ("ant", "bee", "cat"))
  np.testing.assert_array_equal(numbers, [2, 0])


def test_a_class_that_is_not_known():
  with pytest.raises(ConfigError) as error:
    class_matching.match_classes(("ant", "beee", "dog"), ("ant", "bee", "cat"))
  assert str(error.value).startswith(
    "2 of the data's 3 classes, such as 'beee', are not among the 3 classes "
    "of the checkpoint: did you mean 'bee'?"
  )


def scores(labels, right, loss=1.0) -> classification.Scores:
  """Scores of images whose prediction is right, or else class 0."""
  labels, right = np.array(labels, int), np.array(right, int)
  return classification.Scores(
    labels=labels,
    loss=np.full(len(labels), loss),
    rank=1 - right,
    prediction=np.where(right, labels, 0),
    confidence=np.ones(len(labels)),
    ids=np.arange(len(labels)),
    allowed=np.ones(max(labels, default=0) + 1, bool),
  )


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
  answers = classification.predict(jnp.zeros((3, 4)), jnp.ones(4, bool), False)
  np.testing.assert_array_equal(answers["prediction"], [0, 0, 0])
  assert answers["confidence"].tolist() == [0.25] * 3


# Names in WordNet of two classes each; torchvision tells some of them apart.
UNCLEAR = (
  "partridge", "crayfish", "crane", "crane bird", "cardigan", "polecat", "gong",
  "harp", "maillot", "maillot tank suit", "missile", "tub",
)  # fmt: skip


def torchvision_names() -> list[str]:
  weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
  return list(weights.meta["categories"])


def imagenet_ids() -> list[str]:
  path = tfds.core.tfds_path("datasets/imagenet2012/labels.txt")
  return path.read_text().split()


def test_imagenets_classes_are_known_by_id_name_and_number():
  """The order of classes is torchvision's, and the IDs are those of TFDS."""
  ids, names = imagenet_ids(), torchvision_names()
  in_order = list(range(1000))
  assert imagenet.class_numbers(ids) == in_order
  assert imagenet.class_numbers(ids[200::-1]) == in_order[200::-1]
  assert imagenet.class_numbers(names) == in_order
  labels = [f"LABEL_{number}" for number in in_order]
  assert imagenet.class_numbers(labels) == in_order
  folders = sorted(map(str, in_order))
  assert imagenet.class_numbers(folders) == list(map(int, folders))
  clear = [name for name in names if name.lower() not in UNCLEAR]
  assert len(clear) == 987
  wanted = [names.index(name) for name in clear]
  assert imagenet.class_numbers(clear) == wanted
  spelled = [name.upper().replace(" ", "_") for name in clear[::-1]]
  assert imagenet.class_numbers(spelled) == wanted[::-1]
  assert imagenet.class_numbers(["tench, Tinca tinca"]) == [0]
  for unclear in (["crane"], ["sofa bed"], ["tench", "n01440764"], ["0", "1"]):
    assert imagenet.class_numbers(unclear) is None


def test_folders_match_heads_that_name_classes_differently():
  match, assumption = class_matching.match_classes, class_matching.assumption
  unnamed = [f"LABEL_{number}" for number in range(1000)]
  folders = ("n01443537", "n01440764", "n15075141")
  for head in (unnamed, torchvision_names()):
    assert match(folders, head).tolist() == [1, 0, 999]
  assert "assumed to be those of ImageNet" in assumption(folders, unnamed)
  assert not assumption(folders, torchvision_names())
  assert match(folders[:2], ("goldfish", "hen", "tench")).tolist() == [0, 2]
  # In alphabetical order, which is not that of the head's numbers.
  named = sorted(torchvision_names())
  wanted = [torchvision_names().index(name) for name in named]
  clear = [x.lower() not in UNCLEAR for x in named]
  found = match([x for x in named if x.lower() not in UNCLEAR], unnamed)
  np.testing.assert_array_equal(found, np.array(wanted)[clear])


@pytest.mark.parametrize(
  ("files", "known", "labels"),
  [
    (("ant/1.png", "cow/a/2.png"), ("cow", "ant", "bee"), [1, 0]),
    (("n01443537/1.png",), torchvision_names(), [1]),
    (("ant/1.png", "2.png"), ("cow", "ant"), []),
    (("ant/1.png", "dog/2.png"), ("cow", "ant"), []),
    (("1.png",), ("1.png",), []),
    # The classes of these folders may be any.
    (("ant/1.png", "cow/2.png"), ("LABEL_0", "LABEL_1"), []),
  ],
)
def test_folders_that_are_classes(files, known, labels):
  found = class_matching.folder_labels(files, known)
  assert list(found.values()) == labels
  assert list(found) == list(files[: len(labels)])


def test_unknown_classes_are_refused_in_a_short_line():
  head = [f"LABEL_{number}" for number in range(1000)]
  with pytest.raises(ConfigError, match="--class_names") as caught:
    class_matching.match_classes(("sofa",), head)
  assert len(str(caught.value)) < 1200


@pytest.mark.parametrize(
  ("labels", "right", "loss", "text"),
  [
    ([0, 0, 0, 1], [1, 1, 1, 0], 0.1, "75.0 %, is not above 75.0 %"),
    ([0, 0, 0, 1], [1, 1, 0, 0], 0.1, "50.0 %, is not above 75.0 %"),
    ([0, 0, 1, 1], [1, 1, 1, 0], 0.69, "0.690, is that of equal probabilities"),
    ([0, 0, 1, 1], [1, 1, 1, 0], 0.6, ""),
    ([], [], 0.6, ""),
    ([0, 0], [1, 1], 0.1, ""),
  ],
)
def test_a_classifier_that_learned_nothing(labels, right, loss, text):
  found = scores(labels, right, loss)
  assert text in classification.nothing_learned(found, 2)
  assert bool(classification.nothing_learned(found, 2)) == bool(text)
  assert not classification.nothing_learned(found, 1)
