"""Disks that fill up, vanish or cannot be written while a run goes on."""

from __future__ import annotations

import pathlib
import resource

import pytest

from bench.lib import faults, kills

SETTINGS = (
  *kills.SETTINGS,
  "--config.train.length=60 steps",
  "--config.train.save_every=6 steps",
  "--config.eval.every=30 steps",
)


def steps(workdir: pathlib.Path) -> list[int]:
  names = [path.name for path in (workdir / "checkpoints").iterdir()]
  return sorted(int(name) for name in names if name.isdigit())


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_loses_nothing(nursery, tmp_path):
  """And when there is room again the run ends as if it had not happened."""
  command = [*SETTINGS, f"--workdir={tmp_path / 'run'}"]
  life = nursery.start(command)
  assert life.wait_for("stepping", 20)
  life.limit_files(faults.LOGS_ONLY)
  assert life.wait() == 1
  told = life.log.read_text()
  assert "Traceback" not in told
  assert "error: two checkpoints in a row could not be written" in told
  kept = steps(tmp_path / "run")[-1]
  assert f"the last good checkpoint is of step {kept}. Free space" in told
  again = nursery.start(command)
  assert again.wait() == 0
  assert f"resuming at step {kept}" in again.log.read_text()
  whole = nursery.start([*SETTINGS, f"--workdir={tmp_path / 'whole'}"])
  assert whole.wait() == 0
  assert kills.remains(tmp_path / "run") == kills.remains(tmp_path / "whole")


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_is_lived_through(nursery, tmp_path):
  command = [*SETTINGS, f"--workdir={tmp_path}"]
  life = nursery.start(command)
  assert life.wait_for("stepping", 20)
  life.limit_files(faults.LOGS_ONLY)
  while "could not be written" not in life.log.read_text() and life.running:
    life.join(0.001)
  life.limit_files(resource.RLIM_INFINITY)
  code, told = life.wait(), life.log.read_text()
  if code:  # the next one failed before there was room
    assert "two checkpoints in a row" in told
  else:
    assert steps(tmp_path)[-1] == 60


@pytest.mark.slow
def test_a_workdir_that_vanishes_stops_the_run(nursery, tmp_path):
  workdir = tmp_path / "run"
  life = nursery.start([*SETTINGS, f"--workdir={workdir}"])
  assert life.wait_for("stepping", 20)
  workdir.rename(tmp_path / "gone")
  assert life.wait() == 1
  told = life.log.read_text()
  assert "error: two checkpoints in a row could not be written" in told
  assert "Traceback" not in told
  assert not (workdir / "metrics.jsonl").exists()
  # It is whole where it went to, and can go on there.
  again = nursery.start([*SETTINGS, f"--workdir={tmp_path / 'gone'}"])
  assert again.wait() == 0


@pytest.mark.parametrize("place", ["/proc/none", "/dev/null/run", "{file}/run"])
def test_a_workdir_that_cannot_be_written(nursery, tmp_path, place):
  (tmp_path / "file").touch()
  workdir = place.format(file=tmp_path / "file")
  life = nursery.start([*SETTINGS, f"--workdir={workdir}"])
  assert life.wait() == 1
  told = life.log.read_text()
  assert "Traceback" not in told
  assert workdir in told
