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

from bench.lib import kills, processes
from tests.helpers import fake_gcs as bucket_lib

SETTINGS = (
  *kills.SETTINGS,
  "--config.train.length=30 steps",
  "--config.train.save_every=10 steps",
  "--config.eval.every=15 steps",
)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
  with bucket_lib.serve(tmp_path_factory.mktemp("bucket")) as opened:
    yield opened


@pytest.fixture(scope="module")
def nursery(bucket, tmp_path_factory):
  """Starts the program where it finds the bucket."""
  directory = tmp_path_factory.mktemp("lives")
  with processes.Nursery(directory, bucket.environ) as opened:
    yield opened


@pytest.fixture(scope="module")
def whole(nursery, tmp_path_factory):
  """What a run leaves on a disk."""
  workdir = tmp_path_factory.mktemp("whole")
  assert nursery.start([*SETTINGS, f"--workdir={workdir}"]).wait() == 0
  return kills.remains(workdir)


def _remains(bucket: bucket_lib.Bucket, run: str, to: pathlib.Path) -> dict:
  bucket.copy_to(to)
  return kills.remains(to / run)


@pytest.mark.slow
def test_killed_and_started_again(bucket, nursery, whole, tmp_path):
  """Ends as a run on a disk that nobody touched."""
  command = [*SETTINGS, "--workdir=gs://bucket/killed/run"]
  random_ = random.Random(0)
  for phase, number in [("saving", 1), ("evaluating", 0)]:
    life = nursery.start(command)
    assert life.wait_for(phase, number)
    life.join(random_.uniform(0, kills.DELAYS[phase]))
    life.signal(signal.SIGKILL)
    assert life.wait() == -signal.SIGKILL
  life = nursery.start(command)
  assert life.wait() == 0, life.log.read_text()
  assert _remains(bucket, "killed/run", tmp_path) == whole


@pytest.mark.slow
def test_stopped_and_started_again(bucket, nursery, whole, tmp_path):
  command = [*SETTINGS, "--workdir=gs://bucket/stopped"]
  life = nursery.start(command)
  assert life.wait_for("stepping", 10)
  life.signal(signal.SIGTERM)
  assert life.wait() == 75, life.log.read_text()
  assert nursery.start(command).wait() == 0
  assert _remains(bucket, "stopped", tmp_path) == whole
  # And its parameters are where another run begins.
  life = nursery.start(
    [
      *SETTINGS,
      "--config.init_from=gs://bucket/stopped",
      f"--workdir={tmp_path}/next",
    ]
  )
  assert life.wait() == 0, life.log.read_text()
  assert kills.records(tmp_path / "next")[0]["loss"] < 1.5


@pytest.mark.slow
def test_a_broken_checkpoint_is_set_aside(bucket, nursery, whole, tmp_path):
  command = [*SETTINGS, "--workdir=gs://bucket/broken"]
  assert nursery.start(command).wait() == 0
  largest = max(
    (name for name in bucket.objects if "broken/checkpoints/30/params" in name),
    key=lambda name: len(bucket.objects[name][0]),
  )
  content = bytearray(bucket.objects[largest][0])
  content[len(content) // 2] ^= 4
  bucket.put(largest, bytes(content))
  life = nursery.start(command)
  assert life.wait() == 0, life.log.read_text()
  assert "broken/checkpoints/30" in life.log.read_text()
  assert _remains(bucket, "broken", tmp_path) == whole


@pytest.mark.slow
@pytest.mark.parametrize("status", [403, 404])
def test_a_bucket_that_refuses_everything(
  bucket, nursery, whole, status, tmp_path
):
  """Ends the run with a line; when it is there again, so is the run."""
  run = f"refused-{status}"
  command = [*SETTINGS, f"--workdir=gs://bucket/{run}"]
  if status == 404:
    # In a bucket that is gone TensorFlow's client makes a directory and those
    # above it for ever, and Orbax asks it to in the middle of a checkpoint.
    bucket.last, bucket.then = f"{run}/checkpoints/10/commit", status
  life = nursery.start(command)
  assert life.wait_for("saving", 1)
  if status != 404:
    bucket.failing = status
  try:
    code = life.wait()
  finally:
    bucket.failing = None
  told = life.log.read_text()
  assert code == 1
  assert "Traceback" not in told
  assert f"gs://bucket/{run}" in told
  life = nursery.start(command)
  assert life.wait() == 0, life.log.read_text()
  assert _remains(bucket, run, tmp_path) == whole


@pytest.mark.slow
def test_the_newer_run_takes_over(bucket, nursery):
  command = [*SETTINGS, "--workdir=gs://bucket/shared"]
  older = nursery.start([*command, "--config.train.length=2000 steps"])
  assert older.wait_for("saving", 1)
  newer = nursery.start([*command, "--config.train.length=2000 steps"])
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
def test_no_such_bucket(nursery, where, told):
  life = nursery.start([*SETTINGS, f"--workdir={where}"])
  assert life.wait(60) == 1
  lines = life.log.read_text().splitlines()
  assert lines[-1].startswith(f"error: --workdir={where}")
  assert told in lines[-1]
  assert not any("Traceback" in line for line in lines)


@pytest.mark.slow
def test_images_in_a_bucket(bucket, nursery, tmp_path):
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
    life = nursery.start(
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
    assert life.wait() == 0, life.log.read_text()
    seen.append(kills.records(workdir))
  assert seen[0] == seen[1]
  assert seen[0][0]["unreadable"] == 0


@pytest.mark.slow
def test_what_was_compiled_is_kept_there(bucket, nursery, whole, tmp_path):
  """Written by the first run, and read by the second one."""
  cache = "--config.train.compile_cache=gs://bucket/compiled"
  for run in ("writes", "reads"):
    life = nursery.start([*SETTINGS, cache, f"--workdir={tmp_path / run}"])
    assert life.wait() == 0, life.log.read_text()
    assert "Warning" not in life.log.read_text()
    assert kills.remains(tmp_path / run)["metrics"] == whole["metrics"]
    kept = {x for x in bucket.objects if x.startswith("compiled/")}
    if run == "writes":
      assert any("train_step" in name for name in kept)
      before = kept
  assert kept == before
