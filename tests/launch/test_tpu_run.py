"""Tests of the calls for TPU VMs, and of the programs on their hosts."""

from __future__ import annotations

import re

import pytest

from tests.helpers.fake_cluster import message, verbs, words

TPU = ["launch/tpu_vm.sh"]
WHERE = ["--name=mae", "--zone=us-central2-b"]
POD = [*WHERE, "--type=v4-16"]
ODD = ["--config.train.length=400 epochs", '--config.data.path=it\'s $HOME "x"']
MAIN = ["--config=configs/vit_b.py", "--workdir=gs://bucket/run", *ODD]


@pytest.fixture
def pod(world):
  """A TPU VM of two hosts after create and install."""
  world.hosts(2)
  assert world.run(*TPU, "create", *POD).returncode == 0
  done = world.run(*TPU, "install", *WHERE)
  assert done.returncode == 0, done.stderr
  world.forget()
  return world


def test_create_is_one_call_with_the_runtime_of_the_type(world):
  done = world.run(
    *TPU, "create", *WHERE, "--type=v5litepod-16", "--spot", "--project=p"
  )
  assert done.returncode == 0, done.stderr
  assert world.calls() == [
    words(
      "gcloud compute tpus tpu-vm create mae --accelerator-type=v5litepod-16 "
      "--version=v2-alpha-tpuv5-lite --spot --zone=us-central2-b --project=p "
      "--quiet"
    )
  ]


def test_create_waits_for_a_queued_resource(world):
  world.queue("WAITING_FOR_RESOURCES", "PROVISIONING", "PROVISIONING", "ACTIVE")
  done = world.run(*TPU, "create", *POD, "--queued")
  assert done.returncode == 0, done.stderr
  create, *looks = world.calls()
  assert create == words(
    "gcloud compute tpus queued-resources create mae "
    "--accelerator-type=v4-16 --node-id=mae "
    "--runtime-version=tpu-ubuntu2204-base --zone=us-central2-b --quiet"
  )
  assert verbs(looks) == ["queue describe"] * 4
  assert len(re.findall("PROVISIONING", done.stderr)) == 1


def test_uncommitted_changes_of_the_checkout_are_copied(pod):
  (pod.checkout / "configs/vit_b.py").write_text("changed")
  (pod.checkout / "configs/new one.py").write_text("not yet in git")
  (pod.checkout / "configs/vit_h.py").unlink()
  assert pod.run(*TPU, "install", *WHERE).returncode == 0
  for host in ("host-0", "host-1"):
    source = pod.path / host / "mae_jax/src"
    assert (source / "configs/vit_b.py").read_text() == "changed"
    assert (source / "configs/new one.py").exists()
    assert not (source / "configs/vit_h.py").exists()
    assert not (source / ".venv").exists()


def test_a_second_install_keeps_the_environment(pod):
  done = pod.run(*TPU, "install", *WHERE)
  assert done.returncode == 0, done.stderr
  assert verbs(pod.calls()) == ["scp", "install"]


def test_install_pins_versions_and_installs_extras(world):
  world.run(*TPU, "create", *POD)
  assert world.run(*TPU, "install", *WHERE).returncode == 0
  (pip,) = world.calls("python")
  assert pip[1:4] == ["-m", "pip", "install"]
  assert "--constraint" in pip
  assert pip[-1].endswith("mae_jax/src[train,tpu,gcs]")


def test_install_brings_a_python_if_the_host_has_an_old_one(world):
  (world.path / "old_python").write_text("3.10")
  world.run(*TPU, "create", *POD)
  assert world.run(*TPU, "install", *WHERE).returncode == 0
  assert world.calls("python3") == [
    ["python3", "-m", "pip", "install", "--quiet", "--user", "uv"]
  ]


def test_install_of_a_git_ref_clones_it(world):
  world.run(*TPU, "create", *POD)
  me = "-c user.name=me -c user.email=me@example.com"
  commit = f"git add -A && git {me} commit -qm one && git tag v1"
  assert world.shell(commit).returncode == 0
  (world.checkout / "setup.py").write_text("changed since")
  world.forget()
  repository = [f"--git={world.checkout}", "--ref=v1"]
  done = world.run(*TPU, "install", *WHERE, *repository)
  assert done.returncode == 0, done.stderr
  assert verbs(world.calls("gcloud")) == ["install"]
  copied = world.path / "host-0/mae_jax/src/setup.py"
  assert copied.read_text() != "changed since"


def test_main_runs_on_all_hosts_with_its_arguments_unchanged(pod):
  pod.mains(host_0=[0], host_1=[0])
  done = pod.run(*TPU, "run", *POD, "--", *MAIN)
  assert done.returncode == 0, done.stderr
  pod.wait_for("host-0/mae_jax/run/code")
  pod.wait_for("host-1/mae_jax/run/code")
  assert sorted(pod.calls("main")) == [
    ["main", "host-0", *MAIN],
    ["main", "host-1", *MAIN],
  ]


def test_a_run_survives_ssh_refuses_a_second_and_stops_with_75(pod):
  assert pod.run(*TPU, "run", *POD, "--", *MAIN).returncode == 0
  pod.wait_for("alive-host-0")
  pod.wait_for("alive-host-1")
  status = pod.run(*TPU, "status", *WHERE).stdout
  assert status.count("running") == 2

  again = pod.run(*TPU, "run", *POD, "--", *MAIN)
  assert again.returncode == 3
  assert "a run is alive" in again.stderr
  install = pod.run(*TPU, "install", *WHERE)
  assert install.returncode == 3
  assert len(pod.calls("main")) == 2

  log = pod.run(*TPU, "logs", *WHERE, "--worker=1", "--lines=5")
  assert "training" in log.stdout
  stopped = pod.run(*TPU, "stop", *WHERE)
  assert stopped.stdout.count("stopped 75") == 2
  assert pod.run(*TPU, "run", *POD, "--", *MAIN).returncode == 0


def test_main_that_does_not_stop_is_killed(pod):
  pod.mains(host_0=[None], host_1=[0])
  assert pod.run(*TPU, "run", *POD, "--", *MAIN).returncode == 0
  pod.wait_for("alive-host-0")
  pid = (pod.path / "host-0/mae_jax/run/pid").read_text().strip()
  pod.shell(f"kill -STOP {pid}")
  done = pod.run(*TPU, "stop", *WHERE, "--stop-seconds=1")
  assert "still alive after 1 s: killed" in done.stdout
  assert "stopped 137" in done.stdout


def test_ssh_through_iap_uses_the_alpha_commands(pod):
  assert pod.run(*TPU, "status", *WHERE, "--iap").returncode == 0
  describe, ssh = pod.calls("gcloud")
  assert describe[1] == "compute"
  assert ssh[1:6] == ["alpha", "compute", "tpus", "tpu-vm", "ssh"]
  assert "--tunnel-through-iap" in ssh


def test_ssh_times_out_on_lost_machines(world):
  world.run(*TPU, "create", *POD)
  world.forget()
  assert world.run(*TPU, "install", *WHERE).returncode == 0
  scp, ssh = world.calls("gcloud")
  assert "--scp-flag=-oServerAliveInterval=30" in scp
  assert "--ssh-flag=-oServerAliveInterval=30" in ssh


def test_flags_are_read_from_a_file(world):
  file = world.path / "pod.flags"
  file.write_text("# ours\nname=mae\nzone=us-central2-b\nspot\ntype=v4-8\n")
  done = world.run(*TPU, "create", f"--flags={file}", "--type=v4-16")
  assert done.returncode == 0, done.stderr
  (call,) = world.calls()
  assert "--accelerator-type=v4-16" in call
  assert "--spot" in call


def test_delete_also_deletes_the_queued_request(world):
  world.queue("ACTIVE")
  assert world.run(*TPU, "create", *POD, "--queued").returncode == 0
  world.forget()
  assert world.run(*TPU, "delete", *WHERE).returncode == 0
  assert verbs(world.calls()) == ["delete", "queue describe", "queue delete"]
  assert not (world.path / "asked").exists()


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_a_failed_request_prints_the_way_out(world, state):
  world.queue("WAITING_FOR_RESOURCES", state)
  done = world.run(*TPU, "create", *POD, "--queued")
  assert done.returncode == 1
  assert state in done.stderr
  world.queue("ACTIVE")
  assert world.shell(message(done, "to continue")).returncode == 0
  assert (world.path / "node").read_text() == "READY"


def test_a_wait_with_a_limit_resumes_the_same_request(world):
  world.queue("PROVISIONING")
  done = world.run(*TPU, "create", *POD, "--queued", "--wait=1")
  assert done.returncode == 1
  assert "--wait=1" in done.stderr
  world.queue("ACTIVE")
  assert world.shell(message(done, "to continue")).returncode == 0
  assert verbs(world.calls()).count("queue create") == 2
