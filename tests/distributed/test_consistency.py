"""Tests of restoring when another process fails, with simulated answers."""

from __future__ import annotations

import shutil

import pytest

from mae_jax import checkpoints, distributed
from mae_jax.config import EvalConfig
from mae_jax.train import step
from tests.helpers import runs, tiny

_CONFIG = tiny.config(
  train={"length": "4 steps", "save_every": "2 steps"},
  data={"eval_split": ""},
  eval=EvalConfig(images=0),
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  where = tmp_path_factory.mktemp("run")
  runs.train(_CONFIG, where)
  return where


def restore(workdir):
  mesh = runs.devices_mesh()
  task, _ = runs.open_task(_CONFIG, mesh)
  run = checkpoints.CheckpointMetadata(
    _CONFIG, task.info.identity, task.info.class_names
  )
  return checkpoints.restore_newest(workdir, run, step.abstract_state(task))


@pytest.mark.slow
@pytest.mark.parametrize("failing", [1, 2])
def test_a_checkpoint_that_another_process_cannot_read(
  workdir, tmp_path, monkeypatch, capsys, failing
):
  """All restore the step before, if reading or the checksum fails."""
  copy = shutil.copytree(workdir, tmp_path / "copy")
  calls = 0

  def gather(text=""):
    nonlocal calls
    calls += 1
    # There are two calls per checkpoint.
    return [text, "the file is gone" if calls == failing else ""]

  monkeypatch.setattr(distributed, "gather", gather)
  state = restore(copy)
  assert int(state.step) == 2
  names = sorted(path.name for path in (copy / "checkpoints").iterdir())
  assert names[0] == "2"
  assert names[1].startswith("4.broken-")
  assert "(process 1: the file is gone)" in capsys.readouterr().err


def test_only_process_0_sets_checkpoints_aside(workdir, tmp_path, monkeypatch):
  copy = shutil.copytree(workdir, tmp_path / "copy")
  (copy / "checkpoints" / "4" / "loop" / "metadata").write_text("{")
  monkeypatch.setattr("mae_jax.utils.console._process", 1)
  assert int(restore(copy).step) == 2
  assert sorted(p.name for p in (copy / "checkpoints").iterdir()) == ["2", "4"]


def test_process_0_lists_the_checkpoints(workdir, monkeypatch):
  """On a network disk another process may not see the newest one yet."""
  words = iter(["[2]"])
  monkeypatch.setattr(
    distributed, "gather", lambda text="": [next(words, ""), text]
  )
  assert int(restore(workdir).step) == 2
