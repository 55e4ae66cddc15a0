"""Tests of the measurements, the table and the plot of `bench.ablations`."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageFilter

from bench import ablations
from bench.lib import figures
from mae_jax.config import EvalConfig
from tests.helpers import runs, tiny


def test_edges_match_values_computed_by_hand():
  image = np.zeros((1, 2, 3, 1), np.uint8)
  image[0, :, :, 0] = [[0, 4, 6], [0, 0, 0]]
  everywhere = np.ones((1, 2, 3), bool)
  # Down: 0, 4, 6; to the right: 4, 2, 0, 0.
  whole = (2, 3)
  assert figures.edges(image, everywhere, whole) == pytest.approx(16 / 7)
  # Differences across patch borders do not count.
  assert figures.edges(image, everywhere, (1, 3)) == pytest.approx(6 / 4)
  assert figures.edges(image, everywhere, (2, 1)) == pytest.approx(10 / 3)
  everywhere[0, 0, 2] = False
  assert figures.edges(image, everywhere, whole) == pytest.approx(8 / 5)


def test_blurred_images_have_weaker_edges():
  noise = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
  blurred = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1))
  where = np.ones((1, 32, 32), bool)
  found = [
    figures.edges(np.asarray(x)[None, ..., None], where, (8, 8))
    for x in (noise, blurred)
  ]
  assert found[1] < 0.5 * found[0]


@pytest.mark.parametrize("data", ["digits", "photos", "imagenet"])
def test_every_change_can_be_trained(data, tmp_path):
  for change in (ablations.RECIPE, *ablations.DEFAULT):
    ablations.Run(change, data, "", 0, tmp_path).check()


def test_wrong_changes_are_refused_before_any_work(tmp_path):
  for change, message in (
    ("mask=block5", "'block5' is not a strategy and a percentage"),
    ("ratios=50/5", "ratios='5' is not a percentage"),
    ("loss=l1,loss=mse", "config argument loss is given twice"),
    ("discriminator=patch,weight=x", "weight='x' is not of type float"),
    ("weight=0.5", "weight=0.5 needs a discriminator"),
    ("foo=1", "'foo=1' is not known"),
    ("mask=grid33", "a grid cannot keep"),
  ):
    with pytest.raises(SystemExit, match=message):
      ablations.main([change, f"--workdir={tmp_path / 'runs'}"])
  with pytest.raises(SystemExit, match="--second=9 steps is the length of"):
    ablations.main(
      ["loss=l1", "--second=9 steps", f"--workdir={tmp_path}/runs"]
    )
  assert not (tmp_path / "runs").exists()
  (tmp_path / "file").touch()
  with pytest.raises(SystemExit, match="file/runs cannot be created"):
    ablations.main(["loss=l1", f"--workdir={tmp_path}/file/runs"])


@pytest.mark.slow
def test_a_run_is_measured_and_reported(tmp_path):
  run = ablations.Run("loss=l1", "digits", "", 1, tmp_path)
  config = tiny.config(
    train={"length": "3 steps"},
    eval=EvalConfig(shots=(5, 0), num_trials=1, images=0),
  )
  runs.train(config, run.workdir)
  first = figures.reconstruct(run.workdir)
  found = run.probe_accuracies() | first.figures()
  assert list(found) == [
    *ablations.PROBES,
    figures.PSNR,
    figures.SHARPNESS,
  ]
  assert 0 < found["kNN, all"] <= 100
  assert 0 < found[figures.SHARPNESS] < 3
  again = figures.reconstruct(run.workdir)
  assert again.figures().items() <= found.items()
  # Visible patches are not changed.
  visible = ~first.masked
  np.testing.assert_array_equal(first.pasted[visible], first.images[visible])
  figures.draw({"first": first, "second": again}, tmp_path / "x.png")
  height, width = np.asarray(Image.open(tmp_path / "x.png")).shape[:2]
  assert (width, height) == (1020, 360)
  assert "--config=configs/ablations.py:loss=l1,data=digits" in run.args
  assert not any("init_from" in arg for arg in run.args)
  second = ablations.Run("trainable=decoder", "digits", "", 1, tmp_path)
  recipe = ablations.Run(ablations.RECIPE, "digits", "", 1, tmp_path)
  assert f"--config.init_from={recipe.workdir}" in second.args

  # A second stage that starts from another run has another workdir.
  other = dataclasses.replace(second, first="9 steps")
  assert other.workdir != second.workdir

  probes = run.probe_accuracies()
  every = {
    ablations.RECIPE: [found, found],
    ablations.RAW: [probes, probes],
    "loss=l1": [found, found],
  }
  table = ablations.table(every)
  assert "± 0.00" in table
  assert table.splitlines()[3].replace(" ", "").endswith("|||")
  ablations.draw(every, tmp_path / "x.md")
  assert "loss=l1" in (tmp_path / "x.svg").read_text()
