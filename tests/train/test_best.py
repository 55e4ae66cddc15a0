"""The best checkpoint, those that stay for good, and early stopping."""

from __future__ import annotations

import dataclasses
import math
import shutil

import jax
import numpy as np
import pytest

import mae_jax
from mae_jax.checkpoints import Retention
from mae_jax.config import EvalConfig, from_config_dict, to_dict
from mae_jax.evals.results import Report
from mae_jax.train import best, loop
from mae_jax.utils.errors import ConfigError
from tests.helpers import runs, tiny

_CONFIG = tiny.config(
  train={
    "length": "9 steps",
    "save_every": "4 steps",
    "keep": 1,
    "keep_every": "3 steps",
    "keep_best": "eval_loss",
    "patience": 3,
  },
  eval=EvalConfig(every="1 steps", shots=(), images=0),
)


def run(workdir, losses, config=_CONFIG):
  """Runs with evaluations that give these losses; returns their number."""
  mesh = runs.devices_mesh()
  task, data = runs.open_task(config, mesh)
  left = iter(losses)
  evaluate = lambda params: Report({"eval_loss": next(left)}, {}, "")  # noqa: E731
  task.evaluator = lambda data: evaluate
  loop.run(task, data, config, mesh, workdir)
  return len(losses) - len(list(left))


def saved(workdir):
  return sorted(int(each.name) for each in (workdir / "checkpoints").iterdir())


def test_the_best_stays_and_training_ends_when_none_is_better(tmp_path, capsys):
  whole = tmp_path / "whole"
  assert run(whole, [3.0, 1.0, 2.0, math.nan, 1.0, 0.5]) == 5
  # 2 is the best, 3 a multiple of keep_every, and 5 the last.
  assert saved(whole) == [2, 3, 5]
  told = capsys.readouterr().out
  assert "ended early: the last 3 evaluation(s) were not better" in told
  assert "(train.patience=3)" in told
  kept = whole / "checkpoints" / "2"
  assert f"best eval_loss: 1.0000 at step 2, kept in {kept}" in told

  assert mae_jax.Run(whole).best_step == 2

  interrupted = shutil.copytree(whole, tmp_path / "interrupted")
  shutil.rmtree(interrupted / "checkpoints" / "5")
  assert run(interrupted, [math.nan, 1.0, 0.5]) == 2
  assert saved(interrupted) == [2, 3, 5]
  jax.tree.map(
    np.testing.assert_array_equal,
    runs.params(interrupted, _CONFIG),
    runs.params(whole, _CONFIG),
  )

  assert "warning" not in capsys.readouterr().err
  before = (whole / "metrics.jsonl").read_bytes()
  run(whole, [0.1])  # for the summary alone
  assert (whole / "metrics.jsonl").read_bytes() == before
  assert saved(whole) == [2, 3, 5]
  assert "trained" not in capsys.readouterr().out

  # With other settings.
  train = dataclasses.replace(_CONFIG.train, keep_every="0 steps", patience=0)
  run(whole, [2.0] * 4, dataclasses.replace(_CONFIG, train=train))
  warned = "the next save deletes the checkpoints of steps 3, which train.keep"
  assert warned in capsys.readouterr().err
  assert saved(whole) == [2, 9]


def test_patience_beyond_the_last_evaluation_is_warned_of(tmp_path, capsys):
  train = dataclasses.replace(_CONFIG.train, length="3 steps")
  run(tmp_path, [2.0, 1.0, 0.5], dataclasses.replace(_CONFIG, train=train))
  warned = "train.patience=3 cannot end this run, which has 3 evaluation(s)"
  assert warned in capsys.readouterr().err


@pytest.mark.parametrize(
  ("steps", "retention", "wanted"),
  [
    ([1, 2, 3, 4], Retention(2), [3, 4]),
    ([1, 2, 3, 4], Retention(1, every=2), [2, 4]),
    ([1, 2, 3, 4], Retention(1, best=[1, 3]), [3, 4]),
    # The checkpoint of step 3 could not be written.
    ([1, 2, 4], Retention(1, best=[1, 3]), [1, 4]),
  ],
)
def test_which_checkpoints_stay(steps, retention, wanted):
  stay = retention.stay(steps)
  assert [
    step for step, each in zip(steps, stay, strict=True) if each
  ] == wanted


def test_higher_accuracies_and_lower_losses_are_better():
  top1, loss = (
    best.BestEvaluation("eval_top1"),
    best.BestEvaluation("eval_loss"),
  )
  values = {"eval_top1": 0.2, "eval_loss": 0.2}
  assert top1.add(1, values)
  assert loss.add(1, values)
  values = {"eval_top1": 0.3, "eval_loss": 0.3}
  assert top1.add(2, values)
  assert not loss.add(2, values)
  assert not top1.add(3, {})  # no image could be read
  assert (top1.step, top1.waited, loss.step, loss.waited) == (2, 1, 1, 1)


@pytest.mark.parametrize(
  ("train", "every", "complaint"),
  [
    ({"keep_best": ""}, "1 steps", "patience=3 waits for a better evaluation"),
    (
      {},
      "0 steps",
      "keep_best='eval_loss' compares evaluations.* set eval.every",
    ),
  ],
)
def test_settings_that_compare_nothing_are_refused(train, every, complaint):
  values = to_dict(_CONFIG)
  values["train"] |= train
  values["eval"] |= {"every": every}
  with pytest.raises(ConfigError, match=complaint):
    from_config_dict(values)


def test_an_unknown_metric_is_refused_before_any_step(tmp_path):
  config = tiny.config(
    train={"keep_best": "top1"}, eval=EvalConfig(every="1 steps", shots=(5,))
  )
  known = "eval_loss, eval_linear_5/MAE, eval_knn_5/MAE"
  with pytest.raises(
    ConfigError, match=f"keep_best='top1' .* use one of {known}"
  ):
    run(tmp_path / "run", [], config)
  assert not (tmp_path / "run").exists()
