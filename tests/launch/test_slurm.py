"""Tests of submitting a Slurm job, and of its script's reaction to exits."""

from __future__ import annotations

import os
import signal

import pytest

from tests.helpers.fake_cluster import message, words

MAIN = ["--config=configs/vit_b.py", "--workdir=/data/it's mine"]
MAIN += ["--config.train.length=400 epochs"]


@pytest.fixture
def cluster(world):
  (world.path / "venv/bin").mkdir(parents=True)
  (world.path / "venv/bin/python").symlink_to(world.path / "bin/python3")
  return world


def submit(world, *rest: str) -> list[str]:
  flags = [f"--venv={world.path}/venv", f"--logs={world.path}/logs"]
  return ["launch/slurm.sh", "submit", *flags, *rest, "--", *MAIN]


def turn(world, number: int = 0, retries: int = 5) -> dict:
  """Returns arguments and variables of one start of the job by Slurm."""
  script = [
    "launch/slurm.sbatch",
    f"{world.path}/venv/bin/python",
    f"{world.path}/logs",
  ]
  env = {"SLURM_JOB_ID": "4242", "SLURM_RESTART_COUNT": str(number)}
  env["SLURM_CPUS_PER_TASK"] = "8"
  return {"args": ["bash", *script, str(retries), *MAIN], "env": env}


def play(world, **options):
  started = turn(world, **options)
  return world.run(*started["args"], env=started["env"])


def test_the_job_has_one_task_per_gpu_and_a_signal_before_its_limit(
  cluster,
):
  done = cluster.run(
    *submit(cluster, "--nodes=2", "--gpus=4", "--partition=a100")
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == "4242\n"
  (call,) = cluster.calls()
  assert call == [
    *words(
      "sbatch --parsable --job-name=mae --nodes=2 --ntasks-per-node=4 "
      "--gpus-per-node=4 --cpus-per-task=8 --time=24:00:00 "
      "--signal=TERM@300 --requeue --open-mode=append"
    ),
    f"--output={cluster.path}/logs/%x-%j.log",
    f"--chdir={cluster.checkout}",
    "--partition=a100",
    f"{cluster.checkout}/launch/slurm.sbatch",
    f"{cluster.path}/venv/bin/python",
    f"{cluster.path}/logs",
    "5",
    *MAIN,
  ]


def test_a_dry_run_prints_a_command_that_submits_the_same_job(cluster):
  command = submit(cluster, "--account=us")
  assert cluster.run(*command).returncode == 0
  calls = cluster.calls()
  cluster.forget()
  dry = cluster.run(*command[:2], "--dry-run", *command[2:])
  assert cluster.calls() == []
  assert "srun" in dry.stderr  # prints the script
  assert cluster.shell(dry.stdout).returncode == 0
  assert cluster.calls() == calls


def test_all_tasks_get_the_arguments_unchanged(cluster):
  cluster.mains(task_0=[0], task_1=[0])
  done = play(cluster)
  assert done.returncode == 0, done.stdout
  assert sorted(cluster.calls("main")) == [
    ["main", "task-0", *MAIN],
    ["main", "task-1", *MAIN],
  ]
  assert cluster.calls("scontrol") == []


def test_a_task_sees_all_gpus_of_its_node_and_gets_cores(cluster):
  cluster.mains(task_0=[0], task_1=[0])
  play(cluster)
  (call,) = cluster.calls("srun")
  assert "--gpu-bind=none" in call
  assert "--cpus-per-task=8" in call
  assert "--kill-on-bad-exit=0" in call


def test_main_saves_at_the_time_limit_and_the_job_is_requeued(cluster):
  started = turn(cluster)
  with cluster.start(*started["args"], env=started["env"]) as job:
    cluster.wait_for("alive-task-0")
    cluster.wait_for("alive-task-1")
    os.kill(int((cluster.path / "srun.pid").read_text()), signal.SIGTERM)
    out, _ = job.communicate(timeout=30)
  assert job.returncode == 0, out
  assert cluster.calls("scontrol") == [["scontrol", "requeue", "4242"]]
  cluster.mains(task_0=[0], task_1=[0])
  assert play(cluster, number=1).returncode == 0
  assert len(cluster.calls("main")) == 4


def test_restarts_after_lost_peers_are_bounded(cluster):
  cluster.mains(task_0=[76], task_1=[139])
  for number in range(2):
    assert play(cluster, number=number, retries=2).returncode == 0
  last = play(cluster, number=2, retries=2)
  assert last.returncode != 0
  assert "--retries=2" in last.stdout
  assert len(cluster.calls("scontrol")) == 2


def test_a_saved_checkpoint_resets_the_count_of_restarts(cluster):
  cluster.mains(task_0=[76, 75, 76, 76], task_1=[76, 75, 76, 76])
  for number in range(3):
    assert play(cluster, number=number, retries=1).returncode == 0
  assert play(cluster, number=3, retries=1).returncode == 76


def test_a_mistake_of_one_task_ends_the_job(cluster):
  cluster.mains(task_0=[76], task_1=[1])
  done = play(cluster)
  assert done.returncode == 1
  assert cluster.calls("scontrol") == []


def test_stop_saves_and_does_not_requeue(cluster):
  started = turn(cluster)
  with cluster.start(*started["args"], env=started["env"]) as job:
    cluster.wait_for("alive-task-0")
    cluster.wait_for("alive-task-1")
    stop = ["launch/slurm.sh", "stop", "--job=4242"]
    assert cluster.run(*stop, f"--logs={cluster.path}/logs").returncode == 0
    assert cluster.calls("scancel") == [["scancel", "--signal=TERM", "4242"]]
    os.kill(int((cluster.path / "srun.pid").read_text()), signal.SIGTERM)
    out, _ = job.communicate(timeout=30)
  assert job.returncode == 75, out
  assert cluster.calls("scontrol") == []


def test_a_job_that_cannot_be_requeued_prints_a_command_to_resume(cluster):
  cluster.mains(task_0=[75], task_1=[75])
  cluster.fault("scontrol", text="not permitted")
  done = play(cluster)
  assert done.returncode == 75
  assert "failed: requeue job 4242" in done.stdout
  on = next(
    x for x in done.stdout.splitlines() if x.startswith("to continue: ")
  )
  command = on.removeprefix("to continue: ").split(",")[0]
  assert cluster.shell(command).returncode == 0


@pytest.mark.parametrize(
  ("asked", "fault"),
  [(["submit"], "sbatch"), (["status"], "squeue"), (["stop"], "scancel")],
)
def test_a_failure_names_the_step_and_a_command_that_resumes(
  cluster, asked, fault
):
  logs = f"--logs={cluster.path}/logs"
  command = ["launch/slurm.sh", *asked, "--job=4242", logs]
  if asked == ["submit"]:
    command = submit(cluster)
  cluster.fault(fault, code=9, text="slurmctld does not answer")
  failed = cluster.run(*command)
  assert failed.returncode == 9
  assert message(failed, "failed")
  assert cluster.shell(message(failed, "to continue")).returncode == 0


def test_status_and_logs(cluster):
  (cluster.path / "logs").mkdir()
  (cluster.path / "logs/mae-4242.log").write_text("a\nb\n")
  flags = ["--job=4242", f"--logs={cluster.path}/logs"]
  assert cluster.run("launch/slurm.sh", "status", *flags).returncode == 0
  logs = cluster.run("launch/slurm.sh", "logs", *flags, "--lines=1")
  assert logs.stdout == "b\n"


def test_a_shell_finds_the_logs_named_by_a_dry_run(cluster):
  flags = ["--job=4242", f"--logs={cluster.path}/logs", "--dry-run"]
  dry = cluster.run("launch/slurm.sh", "logs", *flags)
  (cluster.path / "logs").mkdir()
  (cluster.path / "logs/mae-4242.log").write_text("a\n")
  assert cluster.shell(dry.stdout).stdout == "a\n"


MISTAKES = [
  (["--nodes=two"], "--nodes=two"),
  (["--time=1 day"], "--time=1 day"),
  (["--time=10"], "leaves less than ten minutes"),
  (["--save-before=120"], "at least 182"),
  (["--venv=nowhere"], "nowhere has no bin/python"),
  (["--gpu=4"], "--gpu=4 is not a flag"),
  (["--name=Mae"], "--name=Mae"),
]


def test_flags_of_processes_after_the_dashes_are_refused(cluster):
  done = cluster.run(*submit(cluster), "--process_id=0")
  assert done.returncode == 1
  assert (
    "--process_id=0 is set for each process by this launcher" in done.stderr
  )
  assert cluster.calls() == []


@pytest.mark.parametrize(("flags", "expected"), MISTAKES)
def test_a_mistake_is_one_line_before_any_call(cluster, flags, expected):
  done = cluster.run(*submit(cluster, *flags))
  assert done.returncode == 1
  assert expected in done.stderr
  assert len(done.stderr.splitlines()) == 1
  assert cluster.calls() == []


def test_the_time_to_save_follows_the_setting_of_main(cluster):
  long = ["--config.train.shutdown_timeout=600"]
  done = cluster.run(*submit(cluster), *long)
  assert done.returncode == 1
  assert "at least 662" in done.stderr
