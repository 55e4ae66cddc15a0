"""Tests of training on a user's own TFDS data set and folders."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn import datasets

from bench.lib import run_outputs
from mae_jax.config import EvalConfig
from mae_jax.distributed import sharding
from tests.helpers import runs, tfds_data, tiny


def _config(**data):
  return tiny.config(
    data={
      "batch_size": 8,
      "image_size": (16, 24),
      "channels": 3,
      "flip": True,
      "mean": (0.5,) * 3,
      "std": (0.25,) * 3,
      "record_shards": 4,
      "eval_split": "validation",
      **data,
    },
    model={"variant": "Ti/8"},
    train={"length": "3 steps", "log_every": "1 steps"},
    eval=EvalConfig(shots=(0,), images=2),
  )


def _check(workdir, report):
  losses = [x["loss"] for x in run_outputs.read_metrics(workdir) if "loss" in x]
  assert len(losses) == 3
  assert np.isfinite(losses).all()
  assert np.isfinite(report.scalars["eval_loss"])
  with Image.open(workdir / "reconstructions.png") as picture:
    assert picture.width > 4 * 24


@pytest.mark.slow
def test_training_on_a_tfds_data_set(tmp_path):
  examples = [
    {"image": np.full((20, 20, 3), 10 * k, np.uint8), "label": k % 2}
    for k in range(20)
  ]
  features = {
    "image": tfds.features.Image(shape=(None, None, 3)),
    "label": tfds.features.ClassLabel(names=["dark", "light"]),
  }
  splits = {"train": examples, "validation": examples[:5]}
  tfds_data.prepare(tmp_path / "sets", "levels", features, splits, num_shards=2)
  config = _config(
    source="tfds", name="levels", data_dir=str(tmp_path / "sets")
  )
  report = runs.train(config, tmp_path / "run")
  _check(tmp_path / "run", report)
  assert 0 <= report.scalars["eval_linear_all/MAE"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_training_on_a_folder_of_photographs(tmp_path, devices):
  photos = datasets.load_sample_images().images
  for split, tops in (("train", (0, 100, 200)), ("val", (50,))):
    for name, photo in zip(("china", "flower"), photos, strict=True):
      folder = tmp_path / "photos" / split / name
      folder.mkdir(parents=True)
      for top in tops:
        crop = Image.fromarray(photo[top : top + 64, 100:180])
        crop.save(folder / f"{top}.jpg")
  config = _config(source="folder", path=str(tmp_path / "photos"))
  report = runs.train(config, tmp_path / "run", devices=devices)
  _check(tmp_path / "run", report)
  assert set(report.scalars) == {
    "eval_loss",
    "eval_linear_all/MAE",
    "eval_knn_all/MAE",
  }


@pytest.mark.slow
def test_evaluation_continues_without_unreadable_images(tmp_path):
  """Some, then all are unreadable; evaluation uses the remaining images."""
  photos = datasets.load_sample_images().images
  for split in ("train", "val"):
    for k, name in enumerate(("china", "flower", "flower", "china")):
      folder = tmp_path / "photos" / split / name
      folder.mkdir(parents=True, exist_ok=True)
      Image.fromarray(photos[k % 2][:40, :50]).save(folder / f"{k}.jpg")
  config = _config(source="folder", path=str(tmp_path / "photos"))
  held_out = sorted((tmp_path / "photos" / "val").glob("*/*.jpg"))
  held_out[0].write_bytes(b"")
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  task, data = runs.open_task(config, mesh)
  evaluate = task.evaluator(data)
  state = task.init()
  scalars = evaluate(state.params).scalars
  assert scalars["eval_unreadable"] == 1
  assert np.isfinite(list(scalars.values())).all()
  assert data.bad_images.names == (str(held_out[0]),)
  for path in held_out:
    path.write_bytes(b"")
  report = evaluate(state.params)
  assert report.scalars == {"eval_unreadable": 4}
  assert report.pictures == {}
  assert task.info.identity["images"] == 4


@pytest.mark.slow
def test_training_without_labels_and_held_out_images(tmp_path):
  (tmp_path / "flat").mkdir()
  for number, photo in enumerate(datasets.load_sample_images().images):
    Image.fromarray(photo[:40, :40]).save(tmp_path / "flat" / f"{number}.png")
  config = _config(source="folder", path=str(tmp_path / "flat"))
  report = runs.train(config, tmp_path / "run")
  assert report.scalars == {}
  assert set(report.pictures) == {"reconstructions"}
