"""Tests that runs in a bucket behave like runs on a disk.

The clients are the real ones; only the servers are fake.
"""

from __future__ import annotations

import pathlib
import random
import signal

import numpy as np
import pytest
from PIL import Image

from bench.lib import kill_and_resume, run_outputs
from bench.lib.fork_server import ForkServer
from tests.helpers import fake_gcs as bucket_lib
from tests.helpers.params import slow

SETTINGS = (
  *kill_and_resume.SETTINGS,
  "--config.train.length=30 steps",
  "--config.train.save_every=10 steps",
  "--config.eval.every=15 steps",
)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
  with bucket_lib.serve(tmp_path_factory.mktemp("bucket")) as opened:
    yield opened


@pytest.fixture(scope="module")
def fork_server(bucket, tmp_path_factory):
  """A fork server whose runs find the bucket."""
  directory = tmp_path_factory.mktemp("processes")
  with ForkServer(directory, bucket.environ) as opened:
    yield opened


@pytest.fixture(scope="module")
def whole(fork_server, tmp_path_factory):
  """Outputs of an uninterrupted run on a disk."""
  workdir = tmp_path_factory.mktemp("whole")
  assert fork_server.start([*SETTINGS, f"--workdir={workdir}"]).wait() == 0
  return run_outputs.read_all(workdir)


def _remains(bucket: bucket_lib.Bucket, run: str, to: pathlib.Path) -> dict:
  bucket.copy_to(to)
  return run_outputs.read_all(to / run)


@pytest.mark.slow
def test_a_killed_run_in_a_bucket_resumes(bucket, fork_server, whole, tmp_path):
  """Checks that it ends like an uninterrupted run on a disk."""
  command = [*SETTINGS, "--workdir=gs://bucket/killed/run"]
  random_ = random.Random(0)
  for phase, number in [("saving", 1), ("evaluating", 0)]:
    process = fork_server.start(command)
    assert process.wait_for(phase, number)
    process.join(random_.uniform(0, kill_and_resume.DELAYS[phase]))
    process.signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
  process = fork_server.start(command)
  assert process.wait() == 0, process.log.read_text()
  assert _remains(bucket, "killed/run", tmp_path) == whole


@pytest.mark.slow
def test_a_stopped_run_in_a_bucket_resumes(
  bucket, fork_server, whole, tmp_path
):
  command = [*SETTINGS, "--workdir=gs://bucket/stopped"]
  process = fork_server.start(command)
  assert process.wait_for("stepping", 10)
  process.signal(signal.SIGTERM)
  assert process.wait() == 75, process.log.read_text()
  assert fork_server.start(command).wait() == 0
  assert _remains(bucket, "stopped", tmp_path) == whole
  # Another run can start from its parameters.
  process = fork_server.start(
    [
      *SETTINGS,
      "--config.init_from=gs://bucket/stopped",
      f"--workdir={tmp_path}/next",
    ]
  )
  assert process.wait() == 0, process.log.read_text()
  assert run_outputs.read_metrics(tmp_path / "next")[0]["loss"] < 1.5


@pytest.mark.slow
def test_a_broken_checkpoint_is_set_aside(bucket, fork_server, whole, tmp_path):
  command = [*SETTINGS, "--workdir=gs://bucket/broken"]
  assert fork_server.start(command).wait() == 0
  largest = max(
    (name for name in bucket.objects if "broken/checkpoints/30/params" in name),
    key=lambda name: len(bucket.objects[name][0]),
  )
  content = bytearray(bucket.objects[largest][0])
  content[len(content) // 2] ^= 4
  bucket.put(largest, bytes(content))
  process = fork_server.start(command)
  assert process.wait() == 0, process.log.read_text()
  assert "broken/checkpoints/30" in process.log.read_text()
  assert _remains(bucket, "broken", tmp_path) == whole


@pytest.mark.slow
@pytest.mark.parametrize("status", [403, 404])
def test_a_run_resumes_after_a_bucket_refused_everything(
  bucket, fork_server, whole, status, tmp_path
):
  """The run ends with one line, and resumes when the bucket works again."""
  run = f"refused-{status}"
  command = [*SETTINGS, f"--workdir=gs://bucket/{run}"]
  if status == 404:
    # In a missing bucket, TensorFlow's client tries to create a directory and
    # its parents forever. Orbax creates one in the middle of a checkpoint.
    bucket.last, bucket.then = f"{run}/checkpoints/10/commit", status
  process = fork_server.start(command)
  assert process.wait_for("saving", 1)
  if status != 404:
    bucket.failing = status
  try:
    code = process.wait()
  finally:
    bucket.failing = None
  message = process.log.read_text()
  assert code == 1
  assert "Traceback" not in message
  assert f"gs://bucket/{run}" in message
  process = fork_server.start(command)
  assert process.wait() == 0, process.log.read_text()
  assert _remains(bucket, run, tmp_path) == whole


@pytest.mark.slow
def test_the_newer_run_takes_over(bucket, fork_server):
  command = [*SETTINGS, "--workdir=gs://bucket/shared"]
  older = fork_server.start([*command, "--config.train.length=2000 steps"])
  assert older.wait_for("saving", 1)
  newer = fork_server.start([*command, "--config.train.length=2000 steps"])
  assert older.wait() == 1
  assert "another run took over gs://bucket/shared" in older.log.read_text()
  assert newer.running
  newer.signal(signal.SIGTERM)
  assert newer.wait() == 75, newer.log.read_text()


@pytest.mark.parametrize(
  ("where", "message"),
  [
    slow("gs://nobodys/run", "there is no bucket 'nobodys'"),
    slow("gs://", "is not a directory"),
    ("s3://bucket/run", "is not a directory"),
  ],
)
def test_a_missing_bucket_is_reported(fork_server, where, message):
  process = fork_server.start([*SETTINGS, f"--workdir={where}"])
  assert process.wait(60) == 1
  lines = process.log.read_text().splitlines()
  assert lines[-1].startswith(f"error: --workdir={where}")
  assert message in lines[-1]
  assert not any("Traceback" in line for line in lines)


@pytest.mark.slow
def test_images_in_a_bucket_equal_those_of_a_folder(
  bucket, fork_server, tmp_path
):
  """Compares with the same folder on a disk."""
  random_ = np.random.default_rng(0)
  for number in range(70):
    picture = random_.integers(0, 256, [12, 10, 3], np.uint8)
    path = tmp_path / f"images/train/{number % 2}/{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    bucket.put(str(path.relative_to(tmp_path)), path.read_bytes())
  bucket.put("images/train/README", b"no image")
  seen = []
  for place in (tmp_path, "gs://bucket"):
    workdir = tmp_path / f"workdir-{len(seen)}"
    process = fork_server.start(
      [
        *SETTINGS,
        "--config.data.source=folder",
        f"--config.data.path={place}/images",
        "--config.data.eval_split=",
        "--config.eval.images=0",
        "--config.data.image_size=8",
        "--config.data.channels=3",
        "--config.train.length=6 steps",
        "--config.optim.warmup=1 steps",
        f"--workdir={workdir}",
      ]
    )
    assert process.wait() == 0, process.log.read_text()
    seen.append(run_outputs.read_metrics(workdir))
  assert seen[0] == seen[1]
  assert seen[0][0]["unreadable"] == 0


@pytest.mark.slow
def test_the_compile_cache_can_be_in_a_bucket(
  bucket, fork_server, whole, tmp_path
):
  """The first run writes the cache, and the second one reads it."""
  cache = "--config.train.compile_cache=gs://bucket/compiled"
  for run in ("writes", "reads"):
    process = fork_server.start(
      [*SETTINGS, cache, f"--workdir={tmp_path / run}"]
    )
    assert process.wait() == 0, process.log.read_text()
    assert "Warning" not in process.log.read_text()
    assert run_outputs.read_all(tmp_path / run)["metrics"] == whole["metrics"]
    saved = {x for x in bucket.objects if x.startswith("compiled/")}
    if run == "writes":
      assert any("train_step" in name for name in saved)
      before = saved
  assert saved == before
