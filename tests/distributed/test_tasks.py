"""Tests of every task in two processes, from checkpoints and other weights."""

from __future__ import annotations

import json

import pytest

from tests.helpers import process_groups

SMALL = (
  "--config.model.depth=1",
  "--config.model.width=32",
  "--config.model.mlp_dim=64",
  "--config.model.unroll=1",
  "--config.data.batch_size=32",
)
SHORT = (
  "--config.train.length=4 steps",
  "--config.train.save_every=2 steps",
  "--config.optim.warmup=1 steps",
)
PRETRAIN = (*process_groups.SETTINGS, *SHORT, "--config.eval.images=0")
FINETUNE = ("--config=configs/digits_finetune.py", *SMALL)
LINPROBE = ("--config=configs/digits_linprobe.py", *SMALL)


@pytest.mark.slow
def test_every_task_runs(fork_server, tmp_path):
  """Runs the tasks in order, as each starts from a result before it."""

  def run(name, *args):
    args = (*args, f"--workdir={tmp_path / name}")
    team = process_groups.Team(fork_server, 2, args)
    assert team.wait() == [0, 0], team.outputs()
    return team.output(0)

  def start(name):
    return f"--config.init_from={tmp_path / name}"

  run("pre", *PRETRAIN)
  assert "starting from" in run("again", *PRETRAIN, start("pre"))
  output = run(
    "label_efficiency",
    *(*LINPROBE, *SHORT, start("pre")),
    *(
      "--config.label_efficiency.seeds=1",
      "--config.label_efficiency.shots=5,0",
    ),
  )
  assert "from scratch" in output
  probe = ("--config.task=linprobe", "--config.classify.norm_group=32")
  assert "held-out top-1" in run(
    "probe", *LINPROBE, *SHORT, *probe, start("pre")
  )
  tuned = ("--config.task=finetune", "--config.classify.ema=0.9")
  assert "held-out top-1" in run(
    "tuned", *FINETUNE, *SHORT, *tuned, start("pre")
  )
  run("measured", *FINETUNE, "--config.task=evaluate", start("tuned"))
  found = json.loads((tmp_path / "measured" / "evaluation.json").read_text())
  # The same network on the same 360 images, each counted once.
  last = (tmp_path / "tuned" / "metrics.jsonl").read_text().splitlines()[-1]
  assert found["scalars"]["eval_top1"] == json.loads(last)["eval_top1"]
  from mae_jax.tools import convert

  convert.convert(
    str(tmp_path / "pre"), str(tmp_path / "weights"), to="transformers"
  )
  assert "transformers" in run("others", *PRETRAIN, start("weights"))
