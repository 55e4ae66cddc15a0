"""Tests of the end of a run by signals, killed processes and full disks."""

from __future__ import annotations

import re
import signal
import time

import pytest

from bench.lib import run_outputs
from tests.helpers import process_groups

# Each test is several whole runs.
pytestmark = pytest.mark.slow

# 120 steps with saves, and nothing else.
SETTINGS = (
  *process_groups.SETTINGS,
  "--config.train.length=120 steps",
  "--config.train.save_every=20 steps",
  "--config.train.log_every=10 steps",
  "--config.data.eval_split=",
  "--config.eval.images=0",
)
# Seconds within which all processes end after one is killed.
BOUND = process_groups.HEARTBEAT + 15


def steps(workdir):
  found = (path.name for path in (workdir / "checkpoints").iterdir())
  return sorted(int(name) for name in found if name.isdigit())


@pytest.fixture(scope="session")
def whole(fork_server, tmp_path_factory):
  """An uninterrupted run of two processes."""
  workdir = tmp_path_factory.mktemp("whole")
  team = process_groups.Team(
    fork_server, 2, [*SETTINGS, f"--workdir={workdir}"]
  )
  assert team.wait() == [0, 0], team.outputs()
  return workdir


def check_resume(fork_server, workdir, whole):
  """Checks that the same command ends like the uninterrupted run."""
  again = process_groups.Team(
    fork_server, 2, [*SETTINGS, f"--workdir={workdir}"]
  )
  assert again.wait() == [0, 0], again.outputs()
  found, expected = run_outputs.read_all(workdir), run_outputs.read_all(whole)
  for each in (found, expected):
    each.pop("steps of checkpoints")
  assert found == expected


def test_a_signal_to_one_stops_all_at_the_same_step(
  fork_server, whole, tmp_path
):
  team = process_groups.Team(
    fork_server, 2, [*SETTINGS, f"--workdir={tmp_path}"]
  )
  assert team.processes[1].wait_for("stepping", 45)
  team.processes[1].signal(signal.SIGTERM)
  assert team.wait() == [75, 75], team.outputs()
  (step,) = re.findall(r"stopped after step (\d+) of 120", team.output(0))
  assert steps(tmp_path)[-1] == int(step)
  assert "stopped after" not in team.output(1)
  check_resume(fork_server, tmp_path, whole)


@pytest.mark.parametrize(
  ("number", "phase", "after"),
  [
    (0, "saving", 40),
    (1, "compiling", 0),
  ],
)
def test_a_killed_process_ends_all_in_bounded_time(
  fork_server, whole, tmp_path, number, phase, after
):
  team = process_groups.Team(
    fork_server, 2, [*SETTINGS, f"--workdir={tmp_path}"]
  )
  assert team.processes[number].wait_for(phase, after)
  begin = time.monotonic()
  team.processes[number].signal(signal.SIGKILL)
  codes = team.wait()
  seconds = time.monotonic() - begin
  print(f"{seconds:.1f} s from the death of process {number} in {phase}")
  assert codes[number] == -signal.SIGKILL
  assert codes[1 - number] == 76, team.outputs()
  assert seconds < BOUND
  output = team.output(1 - number)
  assert f"process {number} on " in output
  assert "is gone" in output
  assert "start the same command again" in output
  check_resume(fork_server, tmp_path, whole)


def test_a_suspended_process_counts_as_lost(fork_server, tmp_path):
  team = process_groups.Team(
    fork_server, 2, [*SETTINGS, f"--workdir={tmp_path}"]
  )
  assert team.processes[1].wait_for("stepping", 30)
  team.processes[1].signal(signal.SIGSTOP)
  begin = time.monotonic()
  assert team.processes[0].wait(BOUND) == 76
  assert time.monotonic() - begin > process_groups.HEARTBEAT - 2
  assert (
    f"has sent no heartbeat for {process_groups.HEARTBEAT} s" in team.output(0)
  )
  team.processes[1].signal(signal.SIGCONT)
  assert team.processes[1].wait(BOUND) == 76


def test_a_full_disk_of_one_process_ends_all(fork_server, whole, tmp_path):
  team = process_groups.Team(
    fork_server, 2, [*SETTINGS, f"--workdir={tmp_path}"]
  )
  # The first checkpoint is complete: the second one waited for it.
  assert team.processes[1].wait_for("stepping", 45)
  team.processes[1].limit_files(600)
  assert team.wait() == [1, 1], team.outputs()
  output = team.output(0)
  assert output.count("could not be written (") == 1
  assert output.count("two checkpoints in a row could not be written") == 1
  assert "(process 1: " in output
  # Only process 0 reports it.
  assert "checkpoint" not in team.output(1)
  kept = steps(tmp_path)[-1]
  assert f"the last good checkpoint is of step {kept}" in output
  check_resume(fork_server, tmp_path, whole)


def test_a_signal_while_evaluating_stops_all_at_once(fork_server, tmp_path):
  args = [
    *process_groups.SETTINGS,
    f"--workdir={tmp_path}",
    "--config.data.batch_size=4",
  ]
  team = process_groups.Team(fork_server, 2, args)
  assert team.processes[0].wait_for("evaluating")
  team.processes[0].signal(signal.SIGTERM)
  assert team.wait() == [75, 75], team.outputs()
  assert "stopped after step 12 of 24, which is saved" in team.output(0)
  assert steps(tmp_path)[-1] == 12
  # The interrupted evaluation runs again after the resume.
  assert not [x for x in run_outputs.read_metrics(tmp_path) if "eval_loss" in x]
  again = process_groups.Team(fork_server, 2, args)
  assert again.wait() == [0, 0], again.outputs()
  evaluated = [
    x["step"] for x in run_outputs.read_metrics(tmp_path) if "eval_loss" in x
  ]
  assert evaluated == [12, 24]


def test_a_signal_with_nothing_to_save_ends_all_at_once(fork_server, tmp_path):
  team = process_groups.Team(
    fork_server, 2, [*SETTINGS, f"--workdir={tmp_path}"]
  )
  assert team.processes[0].wait_for("compiling")
  begin = time.monotonic()
  team.processes[0].signal(signal.SIGTERM)
  assert team.wait() == [75, 75], team.outputs()
  assert time.monotonic() - begin < BOUND
  assert "there was nothing new to save" in team.output(0)
  assert "process 0 on " in team.output(1)
