"""Tests that a failed step names itself, what remains, and how to resume."""

from __future__ import annotations

import pytest

from tests.helpers.fake_cluster import message

WHERE = ["--name=mae", "--zone=us-central2-b"]
TYPE = "--type=v4-16"
MAIN = ["--", "--config=configs/vit_b.py", "--workdir=gs://bucket/it's here"]
STEPS = [
  ("create", [TYPE], "tpu-vm create", "create the TPU VM"),
  ("create", [TYPE, "--queued"], "resources create", "create the TPU VM"),
  ("install", [], "tpu-vm scp", "install on the workers"),
  ("install", [], "worker.sh install", "install on the workers"),
  ("install", [], "host-1 <- ", "install on the workers"),
  ("install", [], "pip install", "install on the workers"),
  ("run", [TYPE, *MAIN], "worker.sh run", "start main on the workers"),
  ("run", [TYPE, *MAIN], "host-1 <- .*run", "start main on the workers"),
  ("status", [], "tpu-vm describe", "query mae"),
  ("logs", [], "tpu-vm ssh", "show the log"),
  ("stop", [], "worker.sh stop", "stop main"),
  ("delete", [], "tpu-vm delete", "delete mae"),
]
BEFORE = {
  "create": [],
  "install": ["create"],
  "run": ["create", "install"],
  "logs": ["create", "install", "run"],
  "status": ["create", "install"],
  "stop": ["create", "install"],
  "delete": ["create"],
}


def command(name: str, *rest: str) -> list[str]:
  return ["launch/tpu_vm.sh", name, *WHERE, *rest]


@pytest.mark.parametrize(("name", "flags", "fault", "step"), STEPS)
def test_a_failure_names_the_step_and_a_command_that_resumes(
  world, name, flags, fault, step
):
  world.hosts(2)
  for each in BEFORE[name]:
    rest = {"create": [TYPE], "run": [TYPE, *MAIN]}.get(each, [])
    assert world.run(*command(each, *rest)).returncode == 0
  world.fault(fault, code=7)
  failed = world.run(*command(name, *flags))
  assert failed.returncode != 0
  assert message(failed, "failed").startswith(step)
  if name not in ("create", "delete", "status"):
    assert "costs money" in message(failed, "still there")
  assert message(failed, "to clean up").startswith("launch/tpu_vm.sh delete")

  on = world.shell(message(failed, "to continue"))
  assert on.returncode == 0, on.stderr
  if name == "run":
    world.wait_for("alive-host-0")
    world.wait_for("alive-host-1")
    assert world.calls("main")[-1][2:] == MAIN[1:]
  cleaned = world.shell(message(failed, "to clean up"))
  assert cleaned.returncode == 0 or name == "delete"
  assert not (world.path / "node").exists()


def test_existing_resources_are_not_created_again(world):
  assert world.run(*command("create", TYPE)).returncode == 0
  again = world.run(*command("create", TYPE))
  assert again.returncode == 0
  assert "exists already" in again.stderr


MISTAKES = [
  (["create", "--zone=us-central2-b", TYPE], "--name is missing"),
  (["create", "--name=mae", TYPE], "--zone is missing"),
  (["create", "--name=My_Pod", "--zone=us-central2-b", TYPE], "--name=My_Pod"),
  (["create", "--name=mae", "--zone=europe", TYPE], "--zone=europe"),
  (["create", *WHERE], "--type is missing"),
  (["create", *WHERE, "--type=v9-16"], "--hosts=N"),
  (["create", *WHERE, TYPE, "--spto"], "--spto is not a flag of create"),
  (["create", *WHERE, TYPE, "--wait=soon"], "--wait=soon"),
  (["create", *WHERE, TYPE, "--labels"], "lacks =VALUE"),
  (["launch", *WHERE], "launch is not a command"),
  (["run", *WHERE, TYPE], "nothing to run"),
  (["run", *WHERE, TYPE, "--", "--workdir=gs://b/d"], "--config is missing"),
  (["run", *WHERE, TYPE, "--", "--config=configs/vit_b.py"], "--workdir is"),
  (
    ["run", *WHERE, TYPE, "--", "--config=configs/vitb.py", "--workdir=gs://b"],
    "there is no configs/vitb.py",
  ),
  (
    ["run", *WHERE, TYPE, "--", "--config=configs/vit_b.py", "--workdir=runs"],
    "--workdir=runs is not a bucket, but v4-16 has 2 hosts",
  ),
  (
    ["resume", *WHERE, "--type=v4-8", *MAIN, "--workdir", "runs"],
    "a new TPU VM has new disks",
  ),
  (["status", *WHERE, *MAIN], "status runs nothing"),
  (["install", *WHERE, "--ref=main"], "--ref=main needs --git"),
  (["install", *WHERE, "--flags=no/such"], "--flags=no/such cannot be read"),
]


@pytest.mark.parametrize(("words", "expected"), MISTAKES)
def test_a_mistake_is_one_line_before_any_call(world, words, expected):
  done = world.run("launch/tpu_vm.sh", *words)
  assert done.returncode == 1
  assert expected in done.stderr
  assert done.stderr.startswith("error: ")
  assert len(done.stderr.splitlines()) == 1
  assert world.calls() == []


HOSTS = {"v2-8": 1, "v3-32": 4, "v4-8": 1, "v4-16": 2, "v5p-128": 16}
HOSTS |= {"v5litepod-8": 1, "v5litepod-16": 4, "v6e-256": 64, "v5litepod-1": 1}


@pytest.mark.parametrize(("kind", "hosts"), HOSTS.items())
def test_the_number_of_hosts_of_each_type(world, kind, hosts):
  done = world.run(*command("create", f"--type={kind}", "--dry-run"))
  assert f"({kind}, {hosts} host(s))" in done.stderr
