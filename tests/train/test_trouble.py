"""What was learned is kept when something goes wrong."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest

from mae_jax import config as config_lib
from mae_jax.evals import pretraining
from tests import tiny
from tests.train import runs

_TRAIN = {"length": "4 steps", "log_every": "50 steps"}
_NO_EVAL = config_lib.Eval(images=0, labels=(0,))


def test_a_failing_evaluation_does_not_lose_the_weights(tmp_path, monkeypatch):
  config = tiny.config(train=_TRAIN, eval=_NO_EVAL)

  def fail(self, params):
    raise RuntimeError("no probe today")

  with monkeypatch.context() as patch:
    patch.setattr(pretraining.Evaluation, "__call__", fail)
    with pytest.raises(RuntimeError, match="no probe today"):
      runs.train(config, tmp_path)
  state, _ = runs.steps(config, 4)
  jax.tree.map(
    np.testing.assert_array_equal, runs.params(tmp_path, config), state.params
  )
  runs.train(config, tmp_path)  # and the run can be ended


def test_a_run_that_is_lost_stops_and_keeps_the_last_good_state(tmp_path):
  config = tiny.config(
    train={**_TRAIN, "length": "40 steps", "max_bad_steps": 3},
    eval=_NO_EVAL,
    optim={"lr": 1e38, "warmup": "0 steps"},
  )
  with pytest.raises(config_lib.TrainingError, match="max_bad_steps=3") as stop:
    runs.train(config, tmp_path)
  assert f"init_from={tmp_path}" in str(stop.value)
  kept = runs.params(tmp_path, config)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept))


def test_a_run_beyond_its_new_length_only_reports(tmp_path, capsys):
  longer = tiny.config(train=_TRAIN, eval=_NO_EVAL)
  runs.train(longer, tmp_path)
  shorter = tiny.config(train={**_TRAIN, "length": "3 steps"}, eval=_NO_EVAL)
  runs.train(shorter, tmp_path)
  assert "all 4 steps were already done" in capsys.readouterr().out


def test_pictures_are_made_again_by_a_rerun(tmp_path):
  config = tiny.config(train=_TRAIN, eval=config_lib.Eval(images=2))
  runs.train(config, tmp_path)
  before = (tmp_path / "reconstructions.png").read_bytes()
  (tmp_path / "reconstructions.png").unlink()
  shutil.rmtree(tmp_path / "tensorboard")
  runs.train(config, tmp_path)
  assert (tmp_path / "reconstructions.png").read_bytes() == before
