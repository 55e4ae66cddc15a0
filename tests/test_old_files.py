"""Files that version 0.1 wrote are read by this version.

`tests/fixtures/v0_1.tar.gz` was written with JAX 0.10.2 before settings and
modules were renamed: runs with and without a discriminator, a fine-tuned run,
converted weights, an export, and what they computed then.
"""

from __future__ import annotations

import csv
import json
import pathlib
import tarfile

import numpy as np
import pytest
from etils import epath

from mae_jax import checkpoints
from mae_jax.tools import features, predict
from mae_jax.tools.convert import convert
from mae_jax.tools.export import manifest, stablehlo
from mae_jax.tools.report import run_logs
from tests.helpers import commands, runs

ARCHIVE = pathlib.Path(__file__).parent / "fixtures" / "v0_1.tar.gz"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("old")
  with tarfile.open(ARCHIVE) as archive:
    archive.extractall(folder, filter="data")
  return folder / "v0_1"


def table(path: pathlib.Path) -> list[list[str]]:
  return list(csv.reader(path.read_text().splitlines()))


def test_old_settings_have_their_new_names(files):
  config = checkpoints.read_metadata(files / "discriminator_run").config
  assert config.discriminator.type == "patch"
  assert config.objective.masked_input == "mask_tokens"
  assert config.objective.mask_schedule == "sequential"
  assert config.objective.mask_strategies == ("random", "block")
  assert config.data.record_shards == 8
  assert not config.data.exif_rotate
  assert config.data.background == "drop"  # which it did not know
  assert config.eval.num_trials == 2
  assert config.train.save_every_minutes == 60
  assert config.train.shutdown_timeout == 60
  assert config.model.attention_chunk_mb == 4


def test_features_of_an_old_checkpoint_are_the_same(files, tmp_path):
  out = tmp_path / "features.npz"
  features.write(
    str(files / "discriminator_run"), str(files / "images"), str(out)
  )
  with np.load(out) as found, np.load(files / "features.npz") as wanted:
    np.testing.assert_array_equal(found["names"], wanted["names"])
    np.testing.assert_allclose(found["features"], wanted["features"], atol=1e-5)


def test_predictions_of_an_old_checkpoint_are_the_same(files, tmp_path):
  out = tmp_path / "predictions.csv"
  predict.write(
    str(files / "finetune_run"), str(files / "images"), str(out), top=10
  )
  found, wanted = table(out), table(files / "predictions.csv")
  assert [row[:-1] for row in found] == [row[:-1] for row in wanted]
  np.testing.assert_allclose(
    [float(row[-1]) for row in found[1:]],
    [float(row[-1]) for row in wanted[1:]],
    atol=1e-5,
  )


def test_an_old_run_resumes(files):
  """Also its health counters, of which one had another name."""
  workdir = files / "discriminator_run"
  before = checkpoints.read_metadata(workdir).config
  mesh = runs.devices_mesh()
  from mae_jax.train import loop

  task, data = runs.open_task(before, mesh)
  state = loop.initial_state(task, data, before, mesh, workdir)
  assert int(state.step) == 4
  assert int(state.health.consecutive_skipped) == 0
  assert float(state.health.loss_mean) > 0


@pytest.mark.parametrize(
  ("name", "to"),
  [
    ("converted_transformers", "jax"),
    ("converted_facebook.pth", "jax"),
    ("converted_jax", "transformers"),
    ("pretrain_run", "facebook"),
  ],
)
def test_old_weights_are_converted(files, tmp_path, name, to):
  out = tmp_path / ("x.pth" if to == "facebook" else "out")
  convert(str(files / name), str(out), to=to)
  assert out.exists()


def test_converted_weights_are_equal_in_all_formats(files, tmp_path):
  found = []
  for name in (
    "pretrain_run",
    "converted_jax",
    "converted_transformers",
    "converted_facebook.pth",
  ):
    out = tmp_path / f"{name}.npz"
    features.write(str(files / name), str(files / "images"), str(out))
    with np.load(out) as arrays:
      found.append(arrays["features"])
  for each in found[1:]:
    np.testing.assert_allclose(each, found[0], atol=1e-5)


def test_an_old_export_is_loaded(files):
  """JAX promises to load exports for six months after the exporting release."""
  folder = epath.Path(files / "export_stablehlo")
  assert manifest.is_export(folder)
  serve = stablehlo.load(folder)
  logits = serve(np.zeros((3, 8, 8, 1), np.uint8))
  assert logits.shape == (3, 10)
  assert np.isfinite(logits).all()


def test_an_old_log_is_read(files):
  log = run_logs.read(str(files / "pretrain_run"), None)
  assert log.last("loss") > 0
  assert json.loads((files / "pretrain_run/about.json").read_text())
  assert commands.ROOT.exists()
