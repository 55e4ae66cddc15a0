"""Tests of the rendered JobSet and of the calls of kubectl."""

from __future__ import annotations

import pytest
import yaml

from tests.helpers.fake_cluster import message

JOBSET = "launch/jobset.sh"
TPU = ["--name=mae", "--image=registry.example/mae:1", "--topology=4x8"]
TPU += ["--accelerator=tpu-v5-lite-podslice"]
GPU = [*TPU[:2], "--hosts=3", "--gpus=8", "--gpu-type=nvidia-h100-80gb"]
ODD = ["--config.train.length=400 epochs", '--config.x=it\'s $(HOME): "#" & \\']
MAIN = ["--config=configs/vit_b.py", "--workdir=gs://bucket/run", *ODD]


def render(world, *words: str) -> dict:
  done = world.run(JOBSET, "render", *words)
  assert done.returncode == 0, done.stderr
  assert "${" not in done.stdout
  assert world.calls() == []
  return yaml.safe_load(done.stdout)


def parts(jobset: dict) -> tuple[dict, dict, dict]:
  (workers,) = jobset["spec"]["replicatedJobs"]
  assert workers["name"] == "workers"
  job = workers["template"]["spec"]
  pod = job["template"]["spec"]
  (container,) = pod["containers"]
  return job, pod, container


def as_kubernetes_reads(argument: str) -> str:
  return argument.replace("$$(", "$(")


@pytest.mark.parametrize(("flags", "hosts"), [(TPU, 8), (GPU, 3)])
def test_exit_codes_restarts_and_the_time_to_save(world, flags, hosts):
  jobset = render(world, *flags, "--", *MAIN)
  job, pod, container = parts(jobset)
  assert job["completionMode"] == "Indexed"
  assert job["completions"] == job["parallelism"] == hosts
  assert job["backoffLimit"] == 0
  assert pod["restartPolicy"] == "Never"  # podFailurePolicy requires it
  (rule,) = job["podFailurePolicy"]["rules"]
  assert rule["action"] == "FailJob"
  assert rule["onExitCodes"]["values"] == [1]
  assert rule["onExitCodes"]["containerName"] == container["name"]
  policy = jobset["spec"]["failurePolicy"]
  assert policy["maxRestarts"] == 50
  (mistake,) = policy["rules"]
  assert mistake["action"] == "FailJobSet"
  assert mistake["onJobFailureReasons"] == ["PodFailurePolicy"]
  assert pod["terminationGracePeriodSeconds"] >= 120 + 60


def test_the_time_to_save_follows_the_setting_of_main(world):
  main = [*MAIN, "--config.train.shutdown_timeout=300.5"]
  _, pod, _ = parts(render(world, *TPU, "--", *main))
  assert pod["terminationGracePeriodSeconds"] >= 360.5


def test_tpus_are_selected_by_labels_without_process_flags(world):
  jobset = render(world, *TPU, "--spot", "--", *MAIN)
  _, pod, container = parts(jobset)
  selector = pod["nodeSelector"]
  assert selector["cloud.google.com/gke-tpu-topology"] == "4x8"
  assert selector["cloud.google.com/gke-spot"] == "true"
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  assert [as_kubernetes_reads(x) for x in container["args"]] == MAIN
  assert "volumes" not in pod
  assert jobset["metadata"]["annotations"]


def test_gpus_get_the_coordinator_and_process_numbers(world):
  jobset = render(world, *GPU, "--service-account=trainer", "--", *MAIN)
  _, pod, container = parts(jobset)
  assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
  assert pod["serviceAccountName"] == "trainer"
  assert container["args"][:3] == [
    "--coordinator=$(JOBSET_NAME)-workers-0-0.$(JOBSET_NAME):8476",
    "--num_processes=3",
    "--process_id=$(JOB_COMPLETION_INDEX)",
  ]
  assert [as_kubernetes_reads(x) for x in container["args"][3:]] == MAIN
  env = {each["name"]: each for each in container["env"]}
  assert env["JOBSET_NAME"]["value"] == "mae"
  assert "job-completion-index" in str(env["JOB_COMPLETION_INDEX"])
  assert "annotations" not in jobset["metadata"]


def test_apply_sends_the_output_of_render_to_kubectl(world):
  done = world.run(JOBSET, "apply", *GPU, "--namespace=ml", "--", *MAIN)
  assert done.returncode == 0, done.stderr
  assert world.calls() == [["kubectl", "--namespace=ml", "apply", "-f", "-"]]
  applied = (world.path / "applied.yaml").read_text()
  assert yaml.safe_load(applied) == render_of(world)


def render_of(world) -> dict:
  world.forget()
  return render(world, *GPU, "--", *MAIN)


COMMANDS = {
  "status": 2,
  "logs": 1,
  "stop": 1,
  "resume": 1,
  "delete": 1,
}


@pytest.mark.parametrize("command", ["apply", *COMMANDS])
def test_a_dry_run_prints_commands_for_a_shell(world, command):
  words = [JOBSET, command, "--name=mae", "--context=lab"]
  if command == "apply":
    words += [*GPU, "--", *MAIN]
  dry = world.run(*words[:2], "--dry-run", *words[2:])
  assert dry.returncode == 0, dry.stderr
  assert world.calls() == []
  assert world.shell(dry.stdout).returncode == 0
  calls = world.calls()
  assert len(calls) == COMMANDS.get(command, 1)
  world.forget()
  assert world.run(*words).returncode == 0
  assert world.calls() == calls


@pytest.mark.parametrize("command", ["apply", *COMMANDS])
def test_a_failure_names_the_step_and_a_command_that_resumes(world, command):
  words = [JOBSET, command, "--name=mae"]
  if command == "apply":
    words += [*GPU, "--", *MAIN]
  world.fault("kubectl", code=6, text="the server does not answer")
  failed = world.run(*words)
  assert failed.returncode == 6
  assert message(failed, "failed")
  assert world.shell(message(failed, "to continue")).returncode == 0
  assert world.shell(message(failed, "to clean up")).returncode == 0
  assert world.calls()[-1][1:3] == ["delete", "jobset"]


def test_logs_are_those_of_one_worker(world):
  words = ["--name=mae", "--worker=2", "--follow"]
  assert world.run(JOBSET, "logs", *words).returncode == 0
  (call,) = world.calls()
  assert call[-1] == "--follow"
  assert call[-2].endswith("job-completion-index=2")


MISTAKES = [
  (GPU[1:], MAIN, "--name is missing"),
  ([*GPU, "--name=Mae"], MAIN, "--name=Mae"),
  ([*GPU, "--image=a b"], MAIN, "--image=a b"),
  (TPU[:2], MAIN, "name TPUs"),
  ([*TPU, "--topology=4by8"], MAIN, "--topology=4by8"),
  ([*TPU, "--chips=5"], MAIN, "32 chips, not a multiple of --chips=5"),
  ([*TPU, "--gpus=8"], MAIN, "leave out --gpus"),
  (GPU, [MAIN[0], "--workdir=runs/x"], "--workdir=runs/x is not a bucket"),
  (GPU, [*MAIN, "--process_id=1"], "--process_id=1 is set for each process"),
  (GPU, [*MAIN, "--config.x=a\nb"], "line break"),
]


@pytest.mark.parametrize(("flags", "main", "expected"), MISTAKES)
def test_a_mistake_is_reported_before_any_call(world, flags, main, expected):
  done = world.run(JOBSET, "apply", *flags, "--", *main)
  assert done.returncode == 1
  assert expected in done.stderr
  assert world.calls() == []
