"""The list of runs."""

from __future__ import annotations

import dataclasses
import json
import os
import socket

import pytest

from mae_jax.config import EvalConfig
from mae_jax.tools import runs
from mae_jax.utils.errors import ConfigError
from tests.helpers import fake_logs, tiny


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """Runs: one finished, one stopped, one that ended early and one running."""
  root = tmp_path_factory.mktemp("runs")
  config = tiny.config(task="finetune", eval=EvalConfig(every="1 steps"))
  fake_logs.write(root / "done", config, (3, 6))
  for name, changes in (
    ("sweep/stopped", {}),
    ("sweep/early", {"keep_best": "eval_loss", "patience": 2}),
    ("sweep/running", {}),
  ):
    train = dataclasses.replace(config.train, **changes)
    fake_logs.write(root / name, dataclasses.replace(config, train=train), ())
    about = json.loads((root / name / "about.json").read_text())
    about["total_steps"] = 100
    (root / name / "about.json").write_text(json.dumps(about))
  with (root / "sweep" / "early" / "metrics.jsonl").open("a") as file:
    for step, loss in ((6, 0.5), (7, 0.7), (8, 0.6)):
      record = {"step": step, "eval_loss": loss, "eval_seconds": 1}
      file.write(json.dumps(record) + "\n")
  owner = {"pid": os.getpid(), "host": socket.gethostname()}
  (root / "sweep" / "running" / "run.json").write_text(json.dumps(owner))
  (root / "empty").mkdir()
  return root


def table(output: str) -> list[list[str]]:
  return [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in output.splitlines()
  ]


def test_each_run_has_its_status_step_and_metrics(written, capsys):
  runs.show((str(written),), metrics=("eval_loss", "eval_top1"))
  heading, _, *rows = table(capsys.readouterr().out)
  # No run has eval_top1.
  assert heading == ["run", "task", "status", "step", "eval_loss", "updated"]
  found = {row[0]: row[1:5] for row in rows}
  assert found == {
    "done": ["finetune", "finished", "6/6", "0.1667"],
    "sweep/early": ["finetune", "ended early", "8/100", "0.6"],
    "sweep/running": ["finetune", "running", "6/100", ""],
    "sweep/stopped": ["finetune", "stopped", "6/100", ""],
  }


def test_the_best_run_comes_first(written, capsys):
  def order(metric: str) -> list[str]:
    runs.show((str(written),), sort=metric, metrics=("loss",))
    heading, _, *rows = table(capsys.readouterr().out)
    assert heading[4:-1] == ["loss", metric]
    return [row[0] for row in rows]

  assert order("eval_loss")[:2] == ["done", "sweep/early"]
  assert order("eval_linear_2/MAE")[0] == "done"


@pytest.mark.parametrize(
  ("name", "sort", "complaint"),
  [
    ("", "top1", "--sort=top1: no run has this metric; there are .*eval_loss"),
    (
      "empty",
      "",
      "empty has no run, .* name the directory that",
    ),
    ("none", "", "none is not a directory"),
  ],
)
def test_what_cannot_be_listed_is_named(written, name, sort, complaint):
  with pytest.raises(ConfigError, match=complaint):
    runs.show((str(written / name),), sort=sort)


def test_a_damaged_log_is_left_out(written, tmp_path, capsys):
  config = tiny.config()
  fake_logs.write(tmp_path / "good", config, ())
  fake_logs.write(tmp_path / "bad", config, ())
  with (tmp_path / "bad" / "metrics.jsonl").open("a") as file:
    file.write("what\n{}\n")
  runs.show((str(tmp_path),))
  told = capsys.readouterr()
  assert "good" in told.out
  assert "bad" not in told.out
  assert f"{tmp_path / 'bad'} is left out" in told.err
