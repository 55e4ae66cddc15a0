"""Runs whose directory is in a bucket: as on a disk, whatever happens.

The clients are those a user has; only the servers at the other end are not.
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
  """Starts the program where it finds the bucket."""
  directory = tmp_path_factory.mktemp("processes")
  with ForkServer(directory, bucket.environ) as opened:
    yield opened


@pytest.fixture(scope="module")
def whole(fork_server, tmp_path_factory):
  """What a run leaves on a disk."""
  workdir = tmp_path_factory.mktemp("whole")
  assert fork_server.start([*SETTINGS, f"--workdir={workdir}"]).wait() == 0
  return run_outputs.read_all(workdir)


def _remains(bucket: bucket_lib.Bucket, run: str, to: pathlib.Path) -> dict:
  bucket.copy_to(to)
  return run_outputs.read_all(to / run)


@pytest.mark.slow
def test_killed_and_started_again(bucket, fork_server, whole, tmp_path):
  """Ends as a run on a disk that nobody touched."""
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
def test_stopped_and_started_again(bucket, fork_server, whole, tmp_path):
  command = [*SETTINGS, "--workdir=gs://bucket/stopped"]
  process = fork_server.start(command)
  assert process.wait_for("stepping", 10)
  process.signal(signal.SIGTERM)
  assert process.wait() == 75, process.log.read_text()
  assert fork_server.start(command).wait() == 0
  assert _remains(bucket, "stopped", tmp_path) == whole
  # And its parameters are where another run begins.
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
def test_a_bucket_that_refuses_everything(
  bucket, fork_server, whole, status, tmp_path
):
  """Ends the run with a line; when it is there again, so is the run."""
  run = f"refused-{status}"
  command = [*SETTINGS, f"--workdir=gs://bucket/{run}"]
  if status == 404:
    # In a bucket that is gone TensorFlow's client makes a directory and those
    # above it for ever, and Orbax asks it to in the middle of a checkpoint.
    bucket.last, bucket.then = f"{run}/checkpoints/10/commit", status
  process = fork_server.start(command)
  assert process.wait_for("saving", 1)
  if status != 404:
    bucket.failing = status
  try:
    code = process.wait()
  finally:
    bucket.failing = None
  told = process.log.read_text()
  assert code == 1
  assert "Traceback" not in told
  assert f"gs://bucket/{run}" in told
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
  ("where", "told"),
  [
    ("gs://nobodys/run", "there is no bucket 'nobodys'"),
    ("gs://", "is not a directory"),
    ("s3://bucket/run", "is not a directory"),
  ],
)
def test_no_such_bucket(fork_server, where, told):
  process = fork_server.start([*SETTINGS, f"--workdir={where}"])
  assert process.wait(60) == 1
  lines = process.log.read_text().splitlines()
  assert lines[-1].startswith(f"error: --workdir={where}")
  assert told in lines[-1]
  assert not any("Traceback" in line for line in lines)


@pytest.mark.slow
def test_images_in_a_bucket(bucket, fork_server, tmp_path):
  """Are those of the same folder on a disk."""
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
def test_what_was_compiled_is_kept_there(bucket, fork_server, whole, tmp_path):
  """Written by the first run, and read by the second one."""
  cache = "--config.train.compile_cache=gs://bucket/compiled"
  for run in ("writes", "reads"):
    process = fork_server.start(
      [*SETTINGS, cache, f"--workdir={tmp_path / run}"]
    )
    assert process.wait() == 0, process.log.read_text()
    assert "Warning" not in process.log.read_text()
    assert run_outputs.read_all(tmp_path / run)["metrics"] == whole["metrics"]
    kept = {x for x in bucket.objects if x.startswith("compiled/")}
    if run == "writes":
      assert any("train_step" in name for name in kept)
      before = kept
  assert kept == before
