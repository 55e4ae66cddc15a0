"""Tests of the held-out share of a folder."""

from __future__ import annotations

import numpy as np
import pytest

from mae_jax.data import holdout
from mae_jax.utils.errors import ConfigError
from tests.data.test_layout import names, opened, tree  # noqa: F401 (a fixture)


def files_of(counts):
  files = [
    f"{name}/{k}.jpg".encode()
    for name, count in counts.items()
    for k in range(count)
  ]
  labels = [
    label for label, count in enumerate(counts.values()) for _ in range(count)
  ]
  return files, labels


def chosen(counts, share=0.2):
  files, labels = files_of(counts)
  return {
    file for file, held in zip(files, holdout.choose(files, labels, share),
                               strict=True) if held
  }  # fmt: skip


def test_each_class_holds_out_its_share():
  files, labels = files_of({"a": 100, "b": 20, "c": 2, "d": 1})
  found = holdout.choose(files, labels, 0.1)
  counts = np.bincount(np.asarray(labels)[found], minlength=4)
  assert list(counts) == [10, 2, 1, 0]
  most = holdout.choose(files, labels, 0.99)
  assert list(np.bincount(np.asarray(labels)[~most])) == [1, 1, 1, 1]
  order = np.random.default_rng(0).permutation(len(files))
  again = holdout.choose(
    [files[k] for k in order], [labels[k] for k in order], 0.1
  )
  np.testing.assert_array_equal(again, found[order])


def test_an_added_image_moves_at_most_one_of_its_class():
  counts = {"a": 50, "b": 30}
  before = chosen(counts)
  for more in range(1, 20):
    now = chosen({"a": 50 + more, "b": 30})
    known = set(files_of(counts)[0])
    moved = (before ^ now) & known
    assert len(moved) <= more
    assert all(name.startswith(b"a/") for name in moved)
  assert len(moved) <= 4  # of 50; a random choice would move about 16


def test_a_folder_is_divided(settings, tree):  # noqa: F811
  root = tree(*(f"{name}/{k}.png" for name in "ab" for k in range(10)))
  train, held_out, classes = opened(settings, root, holdout=0.2)
  assert (len(train), len(held_out), classes) == (16, 4, ("a", "b"))
  everything, none, _ = opened(settings, root)
  assert none is None
  assert sorted(train + held_out) == everything
  assert {file[0] for file in held_out} == {"a", "b"}
  # The same for another seed and for no evaluation.
  again = opened(settings, root, holdout=0.2, shots_seed=3, eval_split="")
  assert again == (train, None, classes)
  for name in ("train", "new"):  # the folder may move
    root = root.rename(root.with_name(name))
  assert opened(settings, root, holdout=0.2) == (train, held_out, classes)


def test_a_flat_folder_and_a_training_split(settings, tree):  # noqa: F811
  root = tree(*(f"train/{k}.png" for k in range(10)))
  train, held_out, _ = opened(settings, root, holdout=0.3)
  assert (len(train), len(held_out)) == (7, 3)
  flat = opened(settings, root / "train", holdout=0.3)
  assert [f"train/{name}" for name in flat[1]] == held_out


@pytest.mark.parametrize(
  ("files", "words"),
  [
    (("train/0.png", "train/1.png", "val/0.png"), "root/val has held-out im"),
    (("0.png",), "holds out none of 1 images"),
    (("a/0.png", "b/0.png"), "no class has two: add images"),
  ],
)
def test_refusals(settings, tree, files, words):  # noqa: F811
  with pytest.raises(ConfigError, match=words):
    opened(settings, tree(*files), holdout=0.5)


def test_other_sources_have_splits(settings):
  with pytest.raises(ConfigError, match=r"train_split=train\[:90%\]"):
    settings(holdout=0.1)
