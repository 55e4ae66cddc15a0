"""Tests of the linear probe: only the head is trained, and is evaluated."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest

from bench.lib import run_outputs
from mae_jax.config import ClassifyConfig, Config, EvalConfig
from mae_jax.utils.errors import ConfigError
from tests.helpers import runs, tiny

_PRETRAIN = tiny.config(
  train={"length": "3 steps"},
  eval=EvalConfig(shots=(2,), num_trials=1, images=0),
)


def config(**sections) -> Config:
  sections = {
    "task": "linprobe",
    "train": {
      "length": "80 steps",
      "log_every": "20 steps",
      "save_every": "40 steps",
    },
    # The trust ratio moves a kernel by a share of its norm: by little, unless
    # there are thousands of steps.
    "optim": {"lr": 20.0, "weight_decay": 0.0},
    "classify": ClassifyConfig(head_std=0.2, norm_group=16),
  } | sections
  return tiny.config(**sections)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("pretrained")
  runs.train(_PRETRAIN, workdir)
  return workdir


@pytest.mark.slow
def test_only_the_head_changes_and_resume_is_exact(pretrained, tmp_path):
  settings = config(init_from=str(pretrained))
  report = runs.train(settings, tmp_path / "whole")
  params = runs.params(tmp_path / "whole", settings)
  before = runs.params(pretrained, _PRETRAIN)["model"]["encoder"]
  after = dict(params["model"]["encoder"])
  after.pop("pos_embed")
  jax.tree.map(np.testing.assert_array_equal, after, before)
  assert params["stats"]["mean"].any()
  records = run_outputs.read_metrics(tmp_path / "whole")
  assert report.scalars["eval_top1"] > 0.25  # chance is 0.1

  interrupted = shutil.copytree(tmp_path / "whole", tmp_path / "interrupted")
  shutil.rmtree(interrupted / "checkpoints" / "80")
  runs.train(settings, interrupted)
  jax.tree.map(
    np.testing.assert_array_equal, runs.params(interrupted, settings), params
  )
  assert run_outputs.read_metrics(interrupted) == records


@pytest.mark.slow
def test_devices_and_accumulation_do_not_change_losses():
  """Uses groups of 16, which combine images of 8 devices with 4 each."""
  _, wanted = runs.steps(config(), 5)
  for accum, mesh in ((1, {"devices": 8, "fsdp": 4}), (4, {"devices": 2})):
    optim = {"lr": 20.0, "weight_decay": 0.0, "accum_steps": accum}
    _, losses = runs.steps(config(optim=optim), 5, **mesh)
    np.testing.assert_allclose(losses, wanted, rtol=2e-5)


@pytest.mark.parametrize(
  ("section", "name", "value"),
  [
    ("classify", "trainable", "1 blocks"),
    ("classify", "ema", 0.9),
    ("classify", "mixup", 0.8),
    ("optim", "grad_clip", 1.0),
    ("optim", "layer_decay", 0.75),
  ],
)
def test_settings_of_fine_tuning_are_refused(section, name, value):
  settings = config(**{section: {name: value}})
  text = f"{section}.{name}={value!r} is a setting of fine-tuning"
  with pytest.raises(ConfigError, match=text):
    runs.open_task(settings, runs.devices_mesh())


def test_groups_must_divide_the_batch():
  settings = config(classify=ClassifyConfig(norm_group=12))
  text = "classify.norm_group=12 does not divide data.batch_size=32: use a div"
  with pytest.raises(ConfigError, match=text):
    runs.open_task(settings, runs.devices_mesh())
