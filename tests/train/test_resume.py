"""Tests that a resumed run equals an uninterrupted one, bit for bit."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest

from bench.lib import run_outputs
from mae_jax import checkpoints
from mae_jax.config import EvalConfig
from tests.helpers import runs, tiny
from tests.helpers.params import slow

_CONFIG = tiny.config(
  train={"length": "4 steps", "log_every": "1 steps", "save_every": "2 steps"},
  eval=EvalConfig(every="3 steps", shots=(2,), num_trials=1, images=2),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  runs.train(_CONFIG, workdir)
  return workdir


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("sharded")
  runs.train(_CONFIG, workdir, devices=2, fsdp=2)
  return workdir


@pytest.mark.parametrize(
  ("run", "devices"),
  [("whole", 1), slow("sharded", 2)],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
  request, tmp_path, run, devices
):
  workdir = request.getfixturevalue(run)
  interrupted = shutil.copytree(workdir, tmp_path / "interrupted")
  shutil.rmtree(interrupted / "checkpoints" / "4")

  runs.train(_CONFIG, interrupted, devices=devices, fsdp=devices)

  jax.tree.map(
    np.testing.assert_array_equal,
    runs.params(interrupted, _CONFIG),
    runs.params(workdir, _CONFIG),
  )
  found, wanted = map(run_outputs.read_metrics, (interrupted, workdir))
  assert found == wanted


def test_the_optimizer_and_the_counters_are_restored(whole):
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    runs.steps(_CONFIG, 0)[0],
  )
  expected, _ = runs.steps(_CONFIG, 4)
  task, _ = runs.open_task(_CONFIG, runs.devices_mesh())
  run = checkpoints.CheckpointMetadata(_CONFIG, task.info.identity)
  restored = checkpoints.restore_newest(whole, run, shapes)
  jax.tree.map(np.testing.assert_array_equal, restored, expected)
  assert int(restored.step) == 4


def test_a_finished_run_only_reports(whole, capsys):
  before = (whole / "metrics.jsonl").read_bytes()
  report = runs.train(_CONFIG, whole)
  assert (whole / "metrics.jsonl").read_bytes() == before
  assert "all 4 steps were already done" in capsys.readouterr().out
  assert (
    report.scalars["eval_loss"]
    == run_outputs.read_metrics(whole)[-1]["eval_loss"]
  )


def test_the_log_has_every_line_and_both_evaluations(whole):
  lines = run_outputs.read_metrics(whole)
  assert [line["step"] for line in lines] == [1, 2, 3, 3, 4, 4]
  evaluated = [line["step"] for line in lines if "eval_loss" in line]
  assert evaluated == [3, 4]
  assert (whole / "reconstructions.png").stat().st_size > 0


@pytest.mark.slow
def test_a_checkpoint_comes_before_init_from_and_that_before_scratch(
  whole, tmp_path
):
  trained = runs.params(whole, _CONFIG)
  config = tiny.config(
    train={"length": "1 steps"},
    eval=EvalConfig(images=0),
    init_from=str(whole),
    optim={"blr": 0.0, "warmup": "0 steps"},
  )
  runs.train(config, tmp_path)
  first = runs.params(tmp_path, config)
  jax.tree.map(np.testing.assert_array_equal, first, trained)
  # At rate zero, a run keeps the parameters of its start. A resumed run
  # ignores init_from.
  shutil.rmtree(tmp_path / "checkpoints")
  scratch = tiny.config(
    train={"length": "1 steps"},
    eval=EvalConfig(images=0),
    optim={"blr": 0.0, "warmup": "0 steps"},
  )
  runs.train(scratch, tmp_path)
  fresh = runs.params(tmp_path, scratch)
  kernels = [
    tree["model"]["decoder"]["embed"]["kernel"] for tree in (fresh, trained)
  ]
  assert np.abs(kernels[0] - kernels[1]).max() > 0
  runs.train(config, tmp_path)
  again = runs.params(tmp_path, config)
  jax.tree.map(np.testing.assert_array_equal, again, fresh)


_LONGER = tiny.config(
  train={"length": "8 steps", "log_every": "1 steps", "save_every": "4 steps"},
  data={"eval_split": ""},
  eval=EvalConfig(images=0),
)


@pytest.fixture(scope="module")
def on_eight(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("eight")
  runs.train(_LONGER, workdir, devices=8, fsdp=4)
  return workdir


def _losses(workdir):
  return [x["loss"] for x in run_outputs.read_metrics(workdir) if "loss" in x]


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "fsdp"), [(4, 2), (1, 1), (8, 2)])
def test_a_checkpoint_of_eight_devices_resumes_on_other_meshes(
  on_eight, tmp_path, devices, fsdp
):
  """Losses equal those of the uninterrupted run up to rounding."""
  interrupted = shutil.copytree(on_eight, tmp_path / "interrupted")
  shutil.rmtree(interrupted / "checkpoints" / "8")
  runs.train(_LONGER, interrupted, devices=devices, fsdp=fsdp)
  whole = _losses(on_eight)
  assert len(whole) == 8
  np.testing.assert_allclose(_losses(interrupted), whole, rtol=1e-5)
  assert (interrupted / "metrics.cut.jsonl").exists()  # steps 5 to 8 ran again
