"""Tests that signals save the run and give a special exit code."""

from __future__ import annotations

import json
import signal

import pytest

from bench.lib import kill_and_resume, run_outputs
from tests.helpers.params import slow

SETTINGS = (
  *kill_and_resume.SETTINGS,
  "--config.train.length=40 steps",
  "--config.train.save_every=0 steps",
  "--config.eval.every=20 steps",
)


@pytest.fixture(scope="module")
def whole(fork_server, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  assert fork_server.start([*SETTINGS, f"--workdir={workdir}"]).wait() == 0
  return run_outputs.read_all(workdir)


@pytest.mark.parametrize(
  ("number", "phase", "after"),
  [
    slow(signal.SIGTERM, "stepping", 10),
    slow(signal.SIGINT, "evaluating", 20),
  ],
)
def test_a_signal_saves_and_exits_with_75(
  fork_server, whole, tmp_path, number, phase, after
):
  """The same command then ends like an uninterrupted run."""
  command = [*SETTINGS, f"--workdir={tmp_path}"]
  process = fork_server.start(command)
  assert process.wait_for(phase, after)
  process.signal(number)
  assert process.wait() == 75
  output = process.log.read_text()
  assert "Traceback" not in output
  steps = [int(p.name) for p in (tmp_path / "checkpoints").iterdir()]
  assert len(steps) == 1
  assert f"stopped after step {steps[0]} of 40, which is saved" in output
  assert fork_server.start(command).wait() == 0
  found = run_outputs.read_all(tmp_path)
  # It has one more checkpoint than the uninterrupted run.
  assert found.pop("steps of checkpoints")[-1] == 40
  assert found == {k: v for k, v in whole.items() if k in found}


@pytest.mark.parametrize(
  ("phase", "number"),
  [("starting", 1), slow("compiling", 0)],
)
def test_a_signal_before_the_first_step_exits_at_once(
  fork_server, tmp_path, phase, number
):
  process = fork_server.start([*SETTINGS, f"--workdir={tmp_path}"])
  assert process.wait_for(phase, number)
  process.signal(signal.SIGTERM)
  assert process.wait() == 75
  assert "there was nothing new to save" in process.log.read_text()


@pytest.mark.slow
def test_the_second_run_on_a_workdir_is_refused(fork_server, tmp_path):
  first = fork_server.start([*SETTINGS, f"--workdir={tmp_path}"])
  assert first.wait_for("compiling")
  second = fork_server.start([*SETTINGS, f"--workdir={tmp_path}"])
  assert second.wait() == 1
  output = second.log.read_text()
  assert f"--workdir={tmp_path} is in use by another run (process" in output
  assert str(first.pid) in output
  first.signal(signal.SIGKILL)
  assert first.wait() == -signal.SIGKILL
  # A killed run does not block the next one.
  third = fork_server.start([*SETTINGS, f"--workdir={tmp_path}"])
  assert third.wait_for("stepping")
  assert json.loads((tmp_path / "run.json").read_text())["pid"] == third.pid
  third.signal(signal.SIGKILL)


@pytest.mark.slow
def test_a_run_killed_in_each_phase_resumes_exactly(tmp_path):
  """Kills five times; `make reliability` kills a hundred times."""
  report = kill_and_resume.run(5, tmp_path, seed=2)
  assert report.kills.total() == 5
  # One kill in each phase, but a short phase may end before its kill.
  assert len(report.kills) >= 3
  assert report.differences == []
