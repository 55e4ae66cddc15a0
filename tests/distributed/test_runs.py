"""Tests that runs of several processes equal a run of one process."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from bench.lib import run_outputs
from tests.helpers import process_groups
from tests.helpers.params import slow


def losses(workdir):
  found = {
    line["step"]: line["loss"]
    for line in run_outputs.read_metrics(workdir)
    if "loss" in line
  }
  assert sorted(found) == list(range(1, 25))
  return np.array([found[step] for step in sorted(found)])


def evaluations(workdir):
  """Returns the metrics of all evaluations, by (step, name)."""
  return {
    (line["step"], name): value
    for line in run_outputs.read_metrics(workdir)
    for name, value in line.items()
    if name.startswith("eval_")
  }


@pytest.fixture(scope="session")
def single(fork_server, tmp_path_factory):
  """A run of one process with four devices."""
  workdir = tmp_path_factory.mktemp("single")
  args = [*process_groups.SETTINGS, f"--workdir={workdir}"]
  process = fork_server.start([*args, "--config.mesh.cpu_devices=4"])
  assert process.wait() == 0, process.log.read_text()
  return workdir


@pytest.fixture(scope="session")
def double(fork_server, tmp_path_factory):
  """The same run in two processes with two devices each."""
  workdir = tmp_path_factory.mktemp("double")
  args = [*process_groups.SETTINGS, f"--workdir={workdir}"]
  team = process_groups.Team(fork_server, 2, args, devices=2)
  assert team.wait() == [0, 0], team.outputs()
  assert "step" not in team.output(1)  # only process 0 prints
  return workdir


def check_same(workdir, single):
  np.testing.assert_allclose(losses(workdir), losses(single), rtol=1e-5)
  found, expected = evaluations(workdir), evaluations(single)
  assert found.keys() == expected.keys()
  for each, value in expected.items():
    # One of 360 held-out digits may be classified differently.
    rtol, atol = (1e-5, 0) if each[1] == "eval_loss" else (0, 0.006)
    np.testing.assert_allclose(found[each], value, rtol, atol, err_msg=each)


@pytest.mark.slow
def test_two_processes_train_as_one_does(double, single):
  check_same(double, single)


@pytest.mark.slow
def test_four_processes_train_as_one_does(fork_server, single, tmp_path):
  args = [
    *process_groups.SETTINGS,
    f"--workdir={tmp_path}",
    "--config.mesh.fsdp=2",
  ]
  team = process_groups.Team(fork_server, 4, args)
  assert team.wait() == [0] * 4, team.outputs()
  check_same(tmp_path, single)


@pytest.mark.slow
def test_two_processes_with_all_other_objectives(fork_server, tmp_path):
  """PCA target, InfoNCE over the batch, two masks, and a discriminator."""
  args = [
    *process_groups.SETTINGS,
    "--config.train.length=6 steps",
    "--config.optim.warmup=2 steps",
    "--config.eval.images=0",
    "--config.data.eval_split=",
    "--config.model.unroll=1",
    "--config.objective.masked_input=noise",
    "--config.objective.target=pca",
    "--config.objective.pca_components=2",
    "--config.objective.mask_strategies=('random','block')",
    "--config.objective.contrast=batch",
    "--config.objective.contrast_patches=2",
    "--config.discriminator.type=patch",
    "--config.discriminator.width=8",
    "--config.discriminator.depth=2",
  ]
  compared = {"loss", "loss_contrast", "loss_generator", "loss_discriminator"}
  one, two = tmp_path / "one", tmp_path / "two"
  process = fork_server.start(
    [*args, f"--workdir={one}", "--config.mesh.cpu_devices=4"]
  )
  team = process_groups.Team(
    fork_server, 2, [*args, f"--workdir={two}"], devices=2
  )
  assert team.wait() == [0, 0], team.outputs()
  assert process.wait() == 0, process.log.read_text()
  every, wanted = (
    [line for line in run_outputs.read_metrics(x) if "loss" in line]
    for x in (two, one)
  )
  assert len(wanted) == 6
  for found, expected in zip(every, wanted, strict=True):
    assert found.keys() == expected.keys()
    assert compared <= expected.keys()
    for name in compared:
      np.testing.assert_allclose(
        found[name], expected[name], rtol=1e-4, atol=1e-6, err_msg=name
      )


@pytest.mark.slow
def test_resumes_in_one_process(fork_server, double, single, tmp_path):
  cut = shutil.copytree(double, tmp_path / "cut")
  for step in (18, 24):
    shutil.rmtree(cut / "checkpoints" / str(step))
  args = [
    *process_groups.SETTINGS,
    f"--workdir={cut}",
    "--config.mesh.fsdp=2",
    "--config.mesh.cpu_devices=2",
  ]
  process = fork_server.start(args)
  assert process.wait() == 0, process.log.read_text()
  assert "resuming at step 12 of 24" in process.log.read_text()
  check_same(cut, single)


@pytest.mark.slow
def test_a_workdir_that_is_not_shared_is_refused(fork_server, tmp_path):
  team = process_groups.Team(
    fork_server,
    2,
    process_groups.SETTINGS,
    own=[[f"--workdir={tmp_path / name}"] for name in ("one", "other")],
  )
  assert team.wait() == [1, 1], team.outputs()
  output = team.output(0)
  assert f"process 1 does not see --workdir={tmp_path / 'one'}: it mu" in output
  assert not (tmp_path / "one" / "checkpoints").exists()


@pytest.mark.slow
def test_one_mistake_is_reported_once(fork_server, tmp_path):
  args = [*process_groups.SETTINGS, f"--workdir={tmp_path}"]
  team = process_groups.Team(
    fork_server, 2, [*args, "--config.data.batch_size=31"]
  )
  assert team.wait() == [1, 1], team.outputs()
  assert team.outputs().count("error:") == 1
  assert team.output(0).startswith(
    "error: data.batch_size=31 is not a multiple"
  )


@pytest.mark.parametrize(
  ("name", "one", "other"),
  [
    ("train.seed", 0, 1),
    slow("train.save_every", "6 steps", "7 steps"),
  ],
)
def test_different_settings_are_refused(
  fork_server, tmp_path, name, one, other
):
  args = [*process_groups.SETTINGS, f"--workdir={tmp_path}"]
  own = [[f"--config.{name}={value}"] for value in (one, other)]
  team = process_groups.Team(fork_server, 2, args, own=own)
  assert team.wait(90) == [1, 1], team.outputs()
  assert team.outputs().count("error:") == 1
  assert (
    f"error: the processes have different settings: {name} is {one!r} on "
    f"process 0 and {other!r} on process 1"
  ) in team.output(0)


@pytest.mark.slow
def test_different_images_are_refused(fork_server, tmp_path):
  for host, count in (("one", 8), ("other", 9)):
    (tmp_path / host).mkdir()
    for number in range(count):
      np.save(tmp_path / host / f"{number}.npy", np.zeros((9, 9, 1), np.uint8))
  args = [
    *process_groups.SETTINGS,
    f"--workdir={tmp_path / 'run'}",
    "--config.data.source=folder",
  ]
  own = [[f"--config.data.path={tmp_path / host}"] for host in ("one", "other")]
  team = process_groups.Team(fork_server, 2, args, own=own)
  assert team.wait(90) == [1, 1], team.outputs()
  assert "error: the processes see different images for train: images" in (
    team.output(0)
  )


@pytest.mark.slow
def test_a_mistake_of_one_ends_all(fork_server, tmp_path):
  args = [*process_groups.SETTINGS, f"--workdir={tmp_path}"]
  wrong = ["--config.init_from=nowhere"]
  team = process_groups.Team(fork_server, 2, args, own=[[], wrong])
  assert team.wait() == [1, 1], team.outputs()
  assert "there is no checkpoint in nowhere" in team.output(1)
  assert "process 1 on " in team.output(0)
  assert "failed: there is no checkpoint in nowhere" in team.output(0)


@pytest.mark.slow
def test_a_failure_of_one_while_training_ends_all(fork_server, tmp_path):
  """Only process 1 has a limit of unreadable images that it exceeds."""
  random = np.random.default_rng(0)
  folder = tmp_path / "images"
  folder.mkdir()
  for number in range(8):
    pixels = random.integers(0, 256, (9, 9, 1), np.uint8)
    np.save(folder / f"{number}.npy", pixels)
  (folder / "8.npy").write_bytes(b"none")
  args = [
    *process_groups.SETTINGS,
    f"--workdir={tmp_path / 'run'}",
    "--config.data.source=folder",
    f"--config.data.path={folder}",
    "--config.data.max_unreadable=1",
  ]
  strict = ["--config.data.max_unreadable=0"]
  team = process_groups.Team(fork_server, 2, args, own=[[], strict])
  assert team.wait() == [1, 1], team.outputs()
  assert "process 1: error: stopped at step" in team.output(1)
  assert " failed: stopped at step" in team.output(0)


def test_a_missing_process_ends_the_others(fork_server, tmp_path):
  args = [
    *process_groups.SETTINGS,
    f"--workdir={tmp_path}",
    "--start_seconds=3",
  ]
  team = process_groups.Team(fork_server, 3, args, only=[0, 2])
  assert team.wait(60) == [1, 1]
  assert team.output(0).startswith("error: 2 of 3 processes started within")
  assert "process 1 did not" in team.output(0)
  assert team.output(2).count("\n") == 1
