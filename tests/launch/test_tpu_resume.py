"""Tests of `resume` after preemptions, exit codes and lost workers."""

from __future__ import annotations

import signal

import pytest

from tests.helpers.fake_cluster import message, verbs

RESUME = ["launch/tpu_vm.sh", "resume", "--name=mae", "--zone=us-central2-b"]
RESUME += ["--type=v4-16"]
MAIN = ["--", "--config=configs/vit_b.py", "--workdir=gs://bucket/a run"]
FIRST = ["describe", "create", "scp", "install", "run"]


@pytest.fixture
def pod(world):
  world.hosts(2)
  return world


def actions(world) -> list[str]:
  """Returns the calls that change something."""
  looks = ("describe", "status", "queue describe")
  return [x for x in verbs(world.calls("gcloud")) if x not in looks]


def test_resume_creates_everything_and_ends_with_main(pod):
  pod.mains(host_0=[0], host_1=[0])
  done = pod.run(*RESUME, *MAIN)
  assert done.returncode == 0, done.stderr
  assert verbs(pod.calls("gcloud"))[:5] == FIRST
  assert "which costs money" in message(done, "still there")
  assert len(pod.calls("main")) == 2


def test_resume_after_a_failed_run_uses_the_new_arguments(pod):
  pod.mains(host_0=[1, 0], host_1=[1, 0])
  assert pod.run(*RESUME, *MAIN).returncode == 1
  other = [*MAIN, "--config.data.prefetch=2"]
  done = pod.run(*RESUME, *other)
  assert done.returncode == 0, done.stderr
  assert [call[2:] for call in pod.calls("main")[2:]] == [other[1:]] * 2


def test_after_a_preemption_the_same_command_runs_on_a_new_vm(pod):
  pod.mains(host_0=[None, 0], host_1=[None, 0])
  pod.later("describe", "PREEMPTED", after=4)
  done = pod.run(*RESUME, "--spot", *MAIN)
  assert done.returncode == 0, done.stderr
  assert "mae is PREEMPTED: restart 1 of at most 20" in done.stderr
  again = ["create", "scp", "install", "run"]
  assert actions(pod) == [*again, "delete", *again]
  calls = [call[2:] for call in pod.calls("main")]
  assert calls == [MAIN[1:]] * 4


def test_a_vm_stopped_by_hand_is_not_deleted(pod):
  pod.mains(host_0=[None, 0], host_1=[None, 0])
  pod.later("describe", "STOPPED", after=4)
  done = pod.run(*RESUME, *MAIN)
  assert done.returncode == 1
  assert "stopped by hand" in message(done, "failed")
  assert "delete" in message(done, "to continue")
  assert actions(pod) == ["create", "scp", "install", "run"]


@pytest.mark.slow
def test_a_suspended_queued_resource_is_requested_again(pod):
  pod.mains(host_0=[None, 0], host_1=[None, 0])
  pod.queue("ACTIVE", "SUSPENDED", "WAITING_FOR_RESOURCES", "ACTIVE")
  pod.later("describe", "ABSENT", after=4)
  done = pod.run(*RESUME, "--queued", "--spot", *MAIN)
  assert done.returncode == 0, done.stderr
  again = ["queue create", "scp", "install", "run"]
  assert actions(pod) == [*again, "queue delete", *again]


@pytest.mark.parametrize("codes", [(75, 75), (76, 75), (139, 76)])
def test_a_run_that_lost_peers_or_got_a_signal_is_restarted(pod, codes):
  pod.mains(host_0=[codes[0], 0], host_1=[codes[1], 0])
  done = pod.run(*RESUME, *MAIN)
  assert done.returncode == 0, done.stderr
  assert actions(pod) == ["create", "scp", "install", "run", "run"]


def test_a_mistake_is_not_retried_even_if_other_hosts_exit_with_76(pod):
  pod.mains(host_0=[1], host_1=[76])
  done = pod.run(*RESUME, *MAIN)
  assert done.returncode == 1
  assert actions(pod) == ["create", "scp", "install", "run"]
  assert "logs" in message(done, "to continue")
  assert "costs money" in message(done, "still there")


@pytest.mark.slow
def test_restarts_are_bounded(pod):
  pod.mains(host_0=[76], host_1=[76])
  done = pod.run(*RESUME, "--retries=2", *MAIN)
  assert done.returncode == 1
  assert actions(pod).count("run") == 3
  assert "--retries=2 restarts in a row" in done.stderr
  pod.mains(host_0=[0], host_1=[0])
  assert pod.shell(message(done, "to continue")).returncode == 0


def test_a_start_that_failed_on_one_worker_is_repeated_on_all(pod):
  pod.mains(host_0=[None, 0], host_1=[0])
  pod.fault("host-1 <- .*worker.sh run", code=255, text="ssh: reset")
  done = pod.run(*RESUME, *MAIN)
  assert done.returncode == 0, done.stderr
  assert actions(pod) == ["create", "scp", "install", "run", "stop", "run"]
  hosts = [call[1] for call in pod.calls("main")]
  assert sorted(hosts) == ["host-0", "host-0", "host-1"]


@pytest.mark.slow
def test_a_failed_ssh_does_not_end_the_watch(pod):
  pod.mains(host_0=[None, 0], host_1=[None, 0])
  pod.fault("tpu-vm ssh", after=2, code=255, text="ssh: reset")
  pod.fault("tpu-vm describe", after=3, code=1, text="503")
  pod.later("tpu-vm describe", "PREEMPTED", after=8)
  done = pod.run(*RESUME, *MAIN)
  assert done.returncode == 0, done.stderr
  assert done.stderr.count("no answer from mae") >= 2
  assert actions(pod).count("create") == 2


def test_nothing_is_created_or_deleted_if_the_cloud_does_not_answer(pod):
  for each in range(12):
    pod.fault("describe", after=each, text="503")
  done = pod.run(*RESUME, *MAIN)
  assert done.returncode == 1
  assert actions(pod) == []
  assert "503" in done.stderr
  assert message(done, "to continue").startswith("launch/tpu_vm.sh resume")


def test_creation_is_retried_without_capacity(pod):
  pod.mains(host_0=[0], host_1=[0])
  pod.fault("tpu-vm create", text="no more capacity in the zone")
  done = pod.run(*RESUME, *MAIN)
  assert done.returncode == 0, done.stderr
  assert actions(pod).count("create") == 2


def test_all_workers_restart_after_one_was_restarted(pod):
  pod.mains(host_0=[None, 0], host_1=[None, 0])
  with pod.start(*RESUME, *MAIN) as process:
    pod.wait_for("alive-host-0")
    pod.wait_for("alive-host-1")
    pid = (pod.path / "host-1/mae_jax/run/pid").read_text().strip()
    pod.shell(f"kill -KILL -$(ps -o pgid= {pid} | tr -d ' ')")
    first = (pod.path / "host-0/mae_jax/run/pid").read_text().strip()
    pod.shell(f"kill -TERM {first}")  # as if it had lost a peer
    _, err = process.communicate(timeout=30)
  assert process.returncode == 0, err
  assert "a worker was restarted" in err


@pytest.mark.slow
def test_a_stop_by_another_command_ends_the_watch_with_75(pod):
  with pod.start(*RESUME, *MAIN) as process:
    pod.wait_for("alive-host-0")
    pod.wait_for("alive-host-1")
    stop = ["launch/tpu_vm.sh", "stop", "--name=mae", "--zone=us-central2-b"]
    assert pod.run(*stop).returncode == 0
    _, err = process.communicate(timeout=30)
  assert process.returncode == 75, err
  assert "costs money" in err
  pod.mains(host_0=[0], host_1=[0])
  again = pod.run(*RESUME, *MAIN)
  assert again.returncode == 0, again.stderr


def test_ctrl_c_leaves_main_running_and_reports_it(pod):
  process = pod.start(*RESUME, *MAIN, start_new_session=True)
  with process:
    pod.wait_for("alive-host-1")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
  assert process.returncode == 143
  assert "main keeps running there, unwatched" in err
  status = ["launch/tpu_vm.sh", "status", *RESUME[2:4]]
  assert pod.run(*status).stdout.count("running") == 2
