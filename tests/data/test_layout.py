"""Tests of which folders are splits and which are classes."""

from __future__ import annotations

import os

import numpy as np
import pytest
import tensorflow as tf
from etils import epath

from mae_jax.data import layout, listing, sources
from mae_jax.data.sources import folder
from mae_jax.utils.errors import ConfigError
from tests.data.conftest import encode

PNG = encode(np.zeros((1, 1), np.uint8), format="png")


@pytest.fixture
def tree(tmp_path, monkeypatch):
  """Writes image files of one pixel, and folders if a name ends in a slash."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  root = tmp_path / "root"

  def write(*names):
    root.mkdir(exist_ok=True)
    for name in names:
      path = root / name
      path.parent.mkdir(parents=True, exist_ok=True)
      if name.endswith("/"):
        path.mkdir()
      else:
        path.write_bytes(PNG if name.endswith("png") else b"no image")
    return root

  return write


def names(source):
  if source is None:
    return None
  files = (source.load(tf.constant(k, tf.int64)) for k in
           range(source.num_examples))  # fmt: skip
  return [os.fsdecode(each["file"].numpy()) for each in files]


def opened(settings, root, **changes):
  """Returns files for training and evaluation, under the root, and classes."""
  data = settings(source="folder", path=str(root), channels=3, **changes)
  both = [sources.open_source(data, split) for split in ("train", "eval")]
  under = [
    each and [name.removeprefix(f"{root}/") for name in names(each)]
    for each in both
  ]
  return *under, both[0].class_names


CLASSES = ("bus/0.png", "bus/1.png", "car/0.png")


@pytest.mark.parametrize(
  ("train", "held_out"),
  [
    ("train", "val"), ("train", "valid"), ("train", "validation"),
    ("train", "dev"), ("train", "eval"), ("Train", "Test"),
    ("training", "testing"), ("TRAINING", "VALID"),
  ],
)  # fmt: skip
@pytest.mark.parametrize("classes", [True, False])
def test_splits_by_any_usual_name(settings, tree, train, held_out, classes):
  inside = ("bus/", "car/") if classes else ("", "")
  files = [f"{train}/{each}{k}.png" for k, each in enumerate(inside)]
  root = tree(*files, f"{held_out}/{inside[0]}9.png", "notes.txt")
  found = opened(settings, root)
  assert found == (
    files, [f"{held_out}/{inside[0]}9.png"], ("bus", "car") if classes else None
  )  # fmt: skip


def test_the_chosen_split_is_evaluated(settings, tree):
  root = tree("train/a/0.png", "val/a/1.png", "test/a/2.png", "extra/a/3.png")
  for split, wanted in (
    ("validation", "val/a/1.png"), ("val", "val/a/1.png"),
    ("test", "test/a/2.png"), ("extra", "extra/a/3.png"),
    ("train", "train/a/0.png"),
  ):  # fmt: skip
    found = opened(settings, root, eval_split=split)
    assert found == (["train/a/0.png"], [wanted], ("a",))
  found = opened(settings, root, train_split="extra", eval_split="")
  assert found == (["extra/a/3.png"], None, ("a",))


def test_a_chosen_split_answers_the_question(settings, tree):
  root = tree("train/0.png", "test/1.png", "extra/2.png")
  found = opened(settings, root, eval_split="test")
  assert found == (["train/0.png"], ["test/1.png"], None)


@pytest.mark.parametrize("split", ["Test", "dev", "../root/val", "val/a", "."])
def test_a_missing_split_is_refused(settings, tree, split):
  root = tree("train/a/0.png", "val/a/1.png", "test/a/2.png")
  words = r"eval_split='.*' is not a folder of .*/root, .* test, train, val: "
  with pytest.raises(ConfigError, match=words):
    opened(settings, root, eval_split=split)


def test_a_class_called_train(settings, tree):
  root = tree(*CLASSES, "train/0.png", "train/1.png")
  files = [*CLASSES, "train/0.png", "train/1.png"]
  assert opened(settings, root) == (files, None, ("bus", "car", "train"))
  # Held-out class folders, of the same names.
  root = tree("test/bus/0.png", "test/train/0.png")
  assert opened(settings, root) == (
    files, ["test/bus/0.png", "test/train/0.png"], ("bus", "car", "train")
  )  # fmt: skip


@pytest.mark.parametrize(
  ("files", "train", "held_out"),
  [
    # A folder without images is no class, and no reason to ask.
    (("train/0.png", "notes/a.txt", "empty/"), ["train/0.png"], None),
    (("train/a/0.png", "labels/a.txt"), ["train/a/0.png"], None),
    # Kaggle: training images by class, test images without.
    (("train/a/0.png", "test/1.png", "x/2.png"), ["train/a/0.png"],
     ["test/1.png"]),
    ((*CLASSES, "val/bus/9.png", "test/1.png"), list(CLASSES),
     ["val/bus/9.png"]),
    (("0.png", "valid/1.png"), ["0.png"], ["valid/1.png"]),
  ],
)  # fmt: skip
def test_structure_decides(settings, tree, files, train, held_out):
  assert opened(settings, tree(*files))[:2] == (train, held_out)


UNCLEAR = [
  (*CLASSES, "train/0.png", "test/0.png"),
  (*CLASSES, "train/2020/0.png"),
  (*CLASSES, "test/0.png"),
  (*CLASSES, "dev/2020/0.png"),
  ("train/0.png", "val/0.png", "extra/0.png"),
  ("dev/0.png", "test/0.png"),
]


@pytest.mark.parametrize("files", UNCLEAR)
def test_the_user_is_asked_where_two_readings_make_sense(settings, tree, files):
  root = tree(*files)
  with pytest.raises(ConfigError, match=r"two ways: .*layout=classes or --"):
    opened(settings, root)
  train, held_out, classes = opened(settings, root, layout="classes")
  assert (train, held_out) == (sorted(files), None)
  assert classes == tuple(sorted({file.split("/")[0] for file in files}))


def test_layout_splits_is_one_answer(settings, tree):
  root = tree(*UNCLEAR[0])
  assert opened(settings, root, layout="splits") == (
    ["train/0.png"], ["test/0.png"], None
  )  # fmt: skip
  data = {"layout": "splits", "eval_split": "car"}
  assert opened(settings, root, **data)[1] == ["car/0.png"]


@pytest.mark.parametrize(
  ("files", "changes", "words"),
  [
    (("Train/0.png", "train/0.png"), {}, "folders Train and train for one"),
    (("train/0.png", "training/0.png"), {}, "train and training for one spl"),
    (("train/0.png", "Val/0.png", "val/1.png"), {}, "Val and val for one spli"),
    (CLASSES, {"layout": "splits"}, "no folder that is called train or val"),
    ((*CLASSES, "test/0.png"), {"layout": "classes", "eval_split": "test"},
     "makes it a split: set one"),
    # Of a zip file, or of class folders that have splits.
    (("photos/train/0.png", "photos/Val/0.png"), {}, "path=.*root/photos,"),
    (("x/y/Train/a/0.png", "x/y/dev/a/0.png"), {}, "path=.*root/x/y,"),
    (("a/train/0.png", "a/test/0.png", "b/1.png"), {}, "data.path=.*root/a,"),
    (("train/0.png", "val/"), {}, "val has no image"),
    ((*CLASSES, "train/"), {}, "train has no image"),
  ],
)  # fmt: skip
def test_refusals(settings, tree, files, changes, words):
  with pytest.raises(ConfigError, match=words):
    opened(settings, tree(*files), **changes)


def test_folders_that_differ_in_case_can_be_chosen(settings, tree):
  root = tree("Train/0.png", "train/1.png", "val/2.png")
  found = opened(settings, root, train_split="Train")
  assert found[:2] == (["Train/0.png"], ["val/2.png"])


def test_the_reading_is_one_sentence(settings, tree):
  root = tree("Train/a/0.png", "test/a/0.png")
  data = settings(source="folder", path=str(root))
  assert folder.find_layout(data).describe(data) == (
    "the folder Train is the training split; the folder test is held out"
  )
  tree("x/train/a/0.png", "x/val/a/1.png", "x/test/a/2.png", "x/more/3.png")
  data = settings(source="folder", path=str(root / "x"))
  assert folder.find_layout(data).describe(data) == (
    "the folder train is the training split; the folder val is held out; not "
    "used: test, more"
  )
  data = settings(source="folder", path=str(root / "test"), holdout=0.25)
  assert folder.find_layout(data).describe(data) == (
    "all images are for training; their folders, if any, are classes; a share "
    "of data.holdout=0.25 is held out"
  )


def test_a_bucket_is_read_as_a_disk_is(settings, tree):
  root = tree("Train/a/0.png", "Test/a/1.png", "labels/train.txt", "train.csv")
  data = settings(source="folder", path=str(root))
  bucket = listing.RemoteTree(str(root))
  found = layout.find_layout(epath.Path(root), bucket, data)
  assert found == layout.Layout("Train", "Test", ("Test", "Train"))
  root = tree("b/bus/0.png", "b/train/1.png", "b/train/2.png")
  bucket = listing.RemoteTree(str(root / "b"))
  assert layout.find_layout(root / "b", bucket, data) == layout.Layout()


def test_links_and_names_of_any_bytes(settings, tree, tmp_path):
  far = tmp_path / "far"
  (far / "ä 日本").mkdir(parents=True)
  (far / "ä 日本" / "ü.png").write_bytes(PNG)
  root = tree("val/ä 日本/1.png")
  os.symlink(far, root / "train")
  assert opened(settings, root) == (
    ["train/ä 日本/ü.png"], ["val/ä 日本/1.png"], ("ä 日本",)
  )  # fmt: skip


@pytest.mark.parametrize(
  ("train", "held_out"),
  [("train2017", "val2017"), ("Training_Set", "test-set"), ("trainset", "val")],
)
def test_names_of_splits_may_have_an_ending(settings, tree, train, held_out):
  root = tree(f"{train}/0.png", f"{held_out}/1.png", "annotations/x.json")
  found = opened(settings, root)
  assert found == ([f"{train}/0.png"], [f"{held_out}/1.png"], None)


def test_numbered_classes_are_no_splits(settings, tree):
  root = tree("train1/0.png", "train2/1.png")
  assert opened(settings, root)[2] == ("train1", "train2")


def test_masks_beside_images_are_no_class(settings, tree, capsys):
  """VOC and most folders for segmentation have both."""
  root = tree("JPEGImages/0.png", "SegmentationClass/0.png")
  opened(settings, root)
  told = capsys.readouterr().err
  assert f"{root}/SegmentationClass is used as images of a class" in told
  assert f"set --config.data.path={root}/JPEGImages" in told
  opened(settings, tree("x/images/0.png", "x/dogs/0.png") / "x")
  assert "masks" not in capsys.readouterr().err


@pytest.mark.parametrize("other", ["CAFE\u0301", "caf\u00e9 ", "Caf\u00e9"])
def test_names_of_classes_that_look_alike(settings, tree, other, capsys):
  """NFC as Linux writes names, NFD as older Macs do."""
  name = "caf\u00e9"
  root = tree(
    *(f"a/{x}/0.png" for x in (f"train/{name}", "train/dog", f"val/{other}")),
    *(f"b/{x}/0.png" for x in (name, other)),
  )
  text = "differ only in case, spaces or"
  with pytest.raises(ConfigError, match=text) as caught:
    opened(settings, root / "a")
  assert ascii(other) in str(caught.value)
  assert text not in capsys.readouterr().err
  opened(settings, root / "b")
  told = capsys.readouterr().err
  assert text in told
  assert "if they are one class, put" in told
