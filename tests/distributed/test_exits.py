"""How a run of several processes ends: by signals, deaths and full disks."""

from __future__ import annotations

import re
import signal
import time

import pytest

from bench.lib import kills
from tests.helpers import process_groups

# Each of them is several whole runs.
pytestmark = pytest.mark.slow

# Of a hundred steps, nothing but steps and saves.
SETTINGS = (
  *process_groups.SETTINGS,
  "--config.train.length=120 steps",
  "--config.train.save_every=20 steps",
  "--config.train.log_every=10 steps",
  "--config.data.eval_split=",
  "--config.eval.images=0",
)
# In which no process may still be there after a death: heartbeat, and grace.
BOUND = process_groups.HEARTBEAT + 15


def steps(workdir):
  found = (path.name for path in (workdir / "checkpoints").iterdir())
  return sorted(int(name) for name in found if name.isdigit())


@pytest.fixture(scope="session")
def whole(nursery, tmp_path_factory):
  """A run of two processes that nothing happened to."""
  workdir = tmp_path_factory.mktemp("whole")
  team = process_groups.Team(nursery, 2, [*SETTINGS, f"--workdir={workdir}"])
  assert team.wait() == [0, 0], team.outputs()
  return workdir


def check_goes_on(nursery, workdir, whole):
  """The same command again ends as if nothing had been."""
  again = process_groups.Team(nursery, 2, [*SETTINGS, f"--workdir={workdir}"])
  assert again.wait() == [0, 0], again.outputs()
  found, expected = kills.remains(workdir), kills.remains(whole)
  for each in (found, expected):
    each.pop("kept checkpoints")
  assert found == expected


def test_a_signal_to_one_stops_all_at_the_same_step(nursery, whole, tmp_path):
  team = process_groups.Team(nursery, 2, [*SETTINGS, f"--workdir={tmp_path}"])
  assert team.lives[1].wait_for("stepping", 45)
  team.lives[1].signal(signal.SIGTERM)
  assert team.wait() == [75, 75], team.outputs()
  (step,) = re.findall(r"stopped after step (\d+) of 120", team.output(0))
  assert steps(tmp_path)[-1] == int(step)
  assert "stopped after" not in team.output(1)
  check_goes_on(nursery, tmp_path, whole)


@pytest.mark.parametrize(
  ("number", "phase", "after"),
  [
    (0, "saving", 40),
    (1, "compiling", 0),
  ],
)
def test_a_death_ends_all_in_bounded_time(
  nursery, whole, tmp_path, number, phase, after
):
  team = process_groups.Team(nursery, 2, [*SETTINGS, f"--workdir={tmp_path}"])
  assert team.lives[number].wait_for(phase, after)
  begin = time.monotonic()
  team.lives[number].signal(signal.SIGKILL)
  codes = team.wait()
  seconds = time.monotonic() - begin
  print(f"{seconds:.1f} s from the death of process {number} in {phase}")
  assert codes[number] == -signal.SIGKILL
  assert codes[1 - number] == 76, team.outputs()
  assert seconds < BOUND
  told = team.output(1 - number)
  assert f"process {number} on " in told
  assert "is gone" in told
  assert "start the same command again" in told
  check_goes_on(nursery, tmp_path, whole)


def test_one_that_hangs_counts_as_gone(nursery, tmp_path):
  team = process_groups.Team(nursery, 2, [*SETTINGS, f"--workdir={tmp_path}"])
  assert team.lives[1].wait_for("stepping", 30)
  team.lives[1].signal(signal.SIGSTOP)
  begin = time.monotonic()
  assert team.lives[0].wait(BOUND) == 76
  assert time.monotonic() - begin > process_groups.HEARTBEAT - 2
  assert (
    f"has sent no heartbeat for {process_groups.HEARTBEAT} s" in team.output(0)
  )
  team.lives[1].signal(signal.SIGCONT)
  assert team.lives[1].wait(BOUND) == 76


def test_a_full_disk_of_one_process_ends_all_and_loses_nothing(
  nursery, whole, tmp_path
):
  team = process_groups.Team(nursery, 2, [*SETTINGS, f"--workdir={tmp_path}"])
  # By then the first checkpoint is whole: the second one waited for it.
  assert team.lives[1].wait_for("stepping", 45)
  team.lives[1].limit_files(600)
  assert team.wait() == [1, 1], team.outputs()
  told = team.output(0)
  assert told.count("could not be written (") == 1
  assert told.count("two checkpoints in a row could not be written") == 1
  assert "(process 1: " in told
  # Of the other one there is nothing to say.
  assert "checkpoint" not in team.output(1)
  kept = steps(tmp_path)[-1]
  assert f"the last good checkpoint is of step {kept}" in told
  check_goes_on(nursery, tmp_path, whole)


def test_a_signal_while_evaluating_stops_all_at_once(nursery, tmp_path):
  args = [
    *process_groups.SETTINGS,
    f"--workdir={tmp_path}",
    "--config.data.batch_size=4",
  ]
  team = process_groups.Team(nursery, 2, args)
  assert team.lives[0].wait_for("evaluating")
  team.lives[0].signal(signal.SIGTERM)
  assert team.wait() == [75, 75], team.outputs()
  assert "stopped after step 12 of 24, which is saved" in team.output(0)
  assert steps(tmp_path)[-1] == 12
  # The evaluation was not done: it is made up for at the start.
  assert not [x for x in kills.records(tmp_path) if "eval_loss" in x]
  again = process_groups.Team(nursery, 2, args)
  assert again.wait() == [0, 0], again.outputs()
  evaluated = [x["step"] for x in kills.records(tmp_path) if "eval_loss" in x]
  assert evaluated == [12, 24]


def test_a_signal_while_nothing_is_at_stake_ends_all_at_once(nursery, tmp_path):
  team = process_groups.Team(nursery, 2, [*SETTINGS, f"--workdir={tmp_path}"])
  assert team.lives[0].wait_for("compiling")
  begin = time.monotonic()
  team.lives[0].signal(signal.SIGTERM)
  assert team.wait() == [75, 75], team.outputs()
  assert time.monotonic() - begin < BOUND
  assert "there was nothing new to save" in team.output(0)
  assert "process 0 on " in team.output(1)
