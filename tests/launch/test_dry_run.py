"""Tests that --dry-run calls nothing and prints commands for a shell."""

from __future__ import annotations

import pytest

POD = ["--name=mae", "--zone=us-central2-b", "--type=v4-16"]
MAIN = ["--", "--config=configs/vit_b.py", "--workdir=gs://b/it's here"]
MAIN += ["--config.train.length=400 epochs"]
RUNS = [[name, *POD] for name in ("create", "install", "status", "logs")]
RUNS += [["create", *POD, "--queued", "--spot"], ["run", *POD, *MAIN]]
RUNS += [["stop", *POD], ["delete", *POD], ["resume", *POD, *MAIN]]
BEFORE = {"create": 0, "resume": 0, "install": 1, "run": 2}


@pytest.mark.parametrize("words", RUNS, ids=" ".join)
def test_a_shell_can_run_the_commands_of_a_dry_run(world, words):
  world.hosts(2)
  world.mains(host_0=[0], host_1=[0])
  for each in ("create", "install")[: BEFORE.get(words[0], 2)]:
    assert world.run("launch/tpu_vm.sh", each, *POD).returncode == 0
  if words[0] == "logs":
    (world.path / "host-0/mae_jax/run/log").touch()
  world.forget()
  dry = world.run("launch/tpu_vm.sh", words[0], "--dry-run", *words[1:])
  assert dry.returncode == 0, dry.stderr
  assert world.calls() == []

  done = world.shell(f"set -e\n{dry.stdout}")
  assert done.returncode == 0, done.stderr
  by_shell = world.calls("gcloud")
  if words[0] == "resume":
    assert len(by_shell) == 6
    return
  if words[0] == "create":
    (world.path / "node").unlink()
    (world.path / "asked").unlink(missing_ok=True)
    for host in world.path.glob("host-*"):
      host.rmdir()
  if words[0] == "delete":
    world.run("launch/tpu_vm.sh", "create", *POD)
  world.forget()
  if words[0] == "run":
    world.wait_for("host-0/mae_jax/run/code")
    world.wait_for("host-1/mae_jax/run/code")
  assert world.run("launch/tpu_vm.sh", *words).returncode == 0
  assert world.calls("gcloud") == by_shell
