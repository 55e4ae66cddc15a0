"""Tests of runs on disks that fill up, vanish or cannot be written."""

from __future__ import annotations

import pathlib
import resource

import pytest

from bench.lib import faults, kill_and_resume, run_outputs

SETTINGS = (
  *kill_and_resume.SETTINGS,
  "--config.train.length=60 steps",
  "--config.train.save_every=6 steps",
  "--config.eval.every=30 steps",
)


def steps(workdir: pathlib.Path) -> list[int]:
  names = [path.name for path in (workdir / "checkpoints").iterdir()]
  return sorted(int(name) for name in names if name.isdigit())


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_loses_nothing(fork_server, tmp_path):
  """After space is freed, the run ends like an uninterrupted one."""
  command = [*SETTINGS, f"--workdir={tmp_path / 'run'}"]
  process = fork_server.start(command)
  assert process.wait_for("stepping", 20)
  process.limit_files(faults.LOGS_ONLY)
  assert process.wait() == 1
  output = process.log.read_text()
  assert "Traceback" not in output
  assert "error: two checkpoints in a row could not be written" in output
  saved = steps(tmp_path / "run")[-1]
  assert f"the last good checkpoint is of step {saved}. Free space" in output
  again = fork_server.start(command)
  assert again.wait() == 0
  assert f"resuming at step {saved}" in again.log.read_text()
  whole = fork_server.start([*SETTINGS, f"--workdir={tmp_path / 'whole'}"])
  assert whole.wait() == 0
  assert run_outputs.read_all(tmp_path / "run") == run_outputs.read_all(
    tmp_path / "whole"
  )


@pytest.mark.slow
def test_a_run_survives_a_disk_that_is_full_for_a_while(fork_server, tmp_path):
  command = [*SETTINGS, f"--workdir={tmp_path}"]
  process = fork_server.start(command)
  assert process.wait_for("stepping", 20)
  process.limit_files(faults.LOGS_ONLY)
  while (
    "could not be written" not in process.log.read_text() and process.running
  ):
    process.join(0.001)
  process.limit_files(resource.RLIM_INFINITY)
  code, output = process.wait(), process.log.read_text()
  if code:  # the next save failed before there was space
    assert "two checkpoints in a row" in output
  else:
    assert steps(tmp_path)[-1] == 60


@pytest.mark.slow
def test_a_workdir_that_vanishes_stops_the_run(fork_server, tmp_path):
  workdir = tmp_path / "run"
  process = fork_server.start([*SETTINGS, f"--workdir={workdir}"])
  assert process.wait_for("stepping", 20)
  workdir.rename(tmp_path / "gone")
  assert process.wait() == 1
  output = process.log.read_text()
  assert "error: two checkpoints in a row could not be written" in output
  assert "Traceback" not in output
  assert not (workdir / "metrics.jsonl").exists()
  # The moved workdir is complete, and the run resumes there.
  again = fork_server.start([*SETTINGS, f"--workdir={tmp_path / 'gone'}"])
  assert again.wait() == 0


@pytest.mark.parametrize("place", ["/proc/none", "/dev/null/run", "{file}/run"])
def test_a_workdir_without_write_permission_is_refused(
  fork_server, tmp_path, place
):
  (tmp_path / "file").touch()
  workdir = place.format(file=tmp_path / "file")
  process = fork_server.start([*SETTINGS, f"--workdir={workdir}"])
  assert process.wait() == 1
  output = process.log.read_text()
  assert "Traceback" not in output
  assert workdir in output
