"""Runs of several processes against those of one, with as many devices."""

from __future__ import annotations

import numpy as np
import pytest

from bench import kills
from tests.multihost import teams


def losses(workdir):
  found = {
    line["step"]: line["loss"]
    for line in kills.records(workdir)
    if "loss" in line
  }
  return np.array([found[step] for step in sorted(found)])


def evaluations(workdir):
  return {
    line["step"]: {k: v for k, v in line.items() if k.startswith("eval_")}
    for line in kills.records(workdir)
    if "eval_loss" in line
  }


@pytest.fixture(scope="session")
def single(nursery, tmp_path_factory):
  """A run of one process with four devices."""
  workdir = tmp_path_factory.mktemp("single")
  args = [*teams.SETTINGS, f"--workdir={workdir}"]
  life = nursery.start([*args, "--config.mesh.cpu_devices=4"])
  assert life.wait() == 0, life.log.read_text()
  return workdir


@pytest.mark.parametrize("count", [2, 4])
def test_trains_as_one_process_does(nursery, single, tmp_path, count):
  args = [*teams.SETTINGS, f"--workdir={tmp_path}"]
  team = teams.Team(nursery, count, args, devices=4 // count)
  assert team.wait() == [0] * count, team.all_told()
  print(count, np.abs(losses(tmp_path) / losses(single) - 1).max())
  print(evaluations(tmp_path), evaluations(single))
  np.testing.assert_allclose(losses(tmp_path), losses(single), rtol=1e-5)
  # One of them speaks.
  for number in range(1, count):
    assert "step" not in team.told(number)
  assert kills.remains(tmp_path).keys() == kills.remains(single).keys()
