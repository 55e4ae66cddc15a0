"""Tries faults that a run must survive; each function yields table rows."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import pathlib
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from PIL import Image
from sklearn import datasets

from bench.lib import (
  corruption,
  kill_and_resume,
  run_outputs,
  small_runs,
  tiny_config,
)
from bench.lib.fork_server import PHASES, ForkServer, Process
from mae_jax import checkpoints
from mae_jax.config import Config, EvalConfig
from mae_jax.data import bad_images, pipeline, sources
from mae_jax.train import step as program

MISTAKES = (
  "--config.data.batch_sizee=3",
  "--config.optim.momentum=0.9",
  "--config.data.batch_size=many",
  "--config.data.flip=3",
  "--config.data.image_size=9",
  "--config.objective.mask_ratio=0",
  "--config.objective.mask_ratio=1",
  "--config.model.heads=5",
  "--config.model.variant=XL/16",
  "--config.model.dtype=float16",
  "--config.data.source=folder",
  "--config.data.source=folder | --config.data.path=/nowhere",
  "--config.data.source=folder | --config.data.path=EMPTY",
  "--config.data.source=tfds | --config.data.name=imagenet2012"
  " | --config.data.channels=3",
  "--config.mesh.cpu_devices=3",
  "--config.mesh.fsdp=2",
  "--config.optim.accum_steps=7",
  "--config.optim.lr=nan",
  "--config.train.length=long",
  "--config.train.length=-1 epochs",
  "--config.train.seed=-1",
  "--config.task=pretrian",
  "--config.eval.pooling=max",
  "--config.data.mean=(0.5,0.5)",
  "--config.data.crop_scale=(1.0,0.2)",
  "--workdir=/dev/null/x",
  "--config=configs/digit.py",
  "--config=configs/vit_l.py:epoch=9",
  "--config.init_from=/nowhere",
  "extra",
)

# File size limit in bytes: above the logs of these runs, below the files of a
# checkpoint.
LOGS_ONLY = 40_000


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of the table.

  Attributes:
    fault: the fault.
    promise: the expected result.
    tried: number of tries.
    kept: number of tries with the expected result.
    seen: the observed results, in words.
  """

  fault: str
  promise: str
  tried: int
  kept: int
  seen: str


def kill_at_random(count: int, directory: pathlib.Path) -> Iterator[Row]:
  """Sends SIGKILL in every phase, and resumes."""
  report = kill_and_resume.run(
    count, directory, report_progress=lambda text: print(f"  {text}")
  )
  for difference in report.differences:
    print(difference)
  for phase in PHASES:
    number = report.kills[phase]
    yield Row(
      f"SIGKILL while {phase}",
      "metrics, events, pictures and state after the rerun equal those of an "
      "uninterrupted run, bit for bit",
      number,
      0 if report.differences else number,
      f"{report.runs} runs compared in all phases, "
      f"{len(report.differences)} differences",
    )


def stop_at_random(count: int, directory: pathlib.Path) -> Iterator[Row]:
  """Sends SIGTERM and Ctrl-C while training, and resumes."""
  random_ = random.Random(0)
  with ForkServer(directory) as fork_server:
    expected = _run_uninterrupted(fork_server, directory)
    for number in (signal.SIGTERM, signal.SIGINT):
      codes: collections.Counter[int] = collections.Counter()
      longest, kept = 0.0, 0
      for _ in range(count):
        workdir = directory / "stopped"
        shutil.rmtree(workdir, ignore_errors=True)
        process = _start(fork_server, workdir)
        process.wait_for("stepping", 2 + random_.randrange(80))
        begin = time.monotonic()
        process.signal(number)
        codes[process.wait()] += 1
        longest = max(longest, time.monotonic() - begin)
        code = _start(fork_server, workdir).wait()
        kept += not code and _same(workdir, expected)
      yield Row(
        f"{signal.Signals(number).name} while training",
        "the run saves and exits with code 75; the rerun ends like an "
        "uninterrupted run",
        count,
        kept if set(codes) == {75} else 0,
        f"exit codes {dict(codes)}; the longest took {longest:.1f} s",
      )


def damage_checkpoints(flips: int, directory: pathlib.Path) -> Iterator[Row]:
  """Damages each file of the newest checkpoint in every way, and restores."""
  every = {"length": "4 steps", "save_every": "2 steps"}
  config = tiny_config.config(train=every, eval=EvalConfig(images=0))
  saved = directory / "saved"
  with _silent():
    small_runs.train(config, saved)
  restore = _restorer(config)
  older = shutil.copytree(saved, directory / "older")
  shutil.rmtree(older / "checkpoints" / "4")
  good = {4: restore(saved), 2: restore(older)}
  newest = saved / "checkpoints" / "4"
  files = [
    path.relative_to(saved) for path in newest.rglob("*") if path.is_file()
  ]
  tried: collections.Counter[str] = collections.Counter()
  kept, undamaged = tried.copy(), tried.copy()
  random_ = random.Random(0)
  for name in sorted(files):
    content = (saved / name).read_bytes()
    for kind, damaged in corruption.damages(content, random_, flips):
      copy = directory / "damaged"
      shutil.rmtree(copy, ignore_errors=True)
      shutil.copytree(saved, copy)
      corruption.apply(copy / name, damaged)
      with _silent():
        state = restore(copy)
      step = int(state.step)
      tried[kind] += 1
      kept[kind] += _equal(state, good[step])
      undamaged[kind] += step == 4
  for kind, number in tried.items():
    yield Row(
      f"a file of the newest checkpoint {kind} ({len(files)} files)",
      "the run restores the saved state or the checkpoint before it",
      number,
      kept[kind],
      f"{undamaged[kind]} times the newest checkpoint was restored unchanged, "
      f"{number - undamaged[kind]} times the checkpoint before it",
    )


def _restorer(
  config: Config,
) -> Callable[[pathlib.Path], checkpoints.TrainState]:
  mesh = small_runs.devices_mesh()
  task, _ = small_runs.open_task(config, mesh)
  shapes = program.abstract_state(task)
  run = checkpoints.CheckpointMetadata(config, task.info.identity)

  def restore(workdir: pathlib.Path) -> checkpoints.TrainState:
    state = checkpoints.restore_newest(workdir, run, shapes)
    assert state is not None
    return state

  return restore


def _equal(a: Any, b: Any) -> bool:
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.array_equal(x, y) for x, y in pairs)


def damage_images(flips: int, directory: pathlib.Path) -> Iterator[Row]:
  """Damages an image of each file type in a training stream."""
  photo = Image.fromarray(datasets.load_sample_images().images[0])
  photo = photo.resize((64, 48))
  for suffix in ("jpg", "png", "webp", "bmp", "gif", "tif"):
    folder = directory / suffix
    folder.mkdir()
    for number in range(16):
      photo.rotate(number).save(folder / f"{number:02d}.{suffix}")
    clean = _stream(folder)
    victim = folder / f"07.{suffix}"
    content = victim.read_bytes()
    victim.write_bytes(b"")
    place = int(np.argmin(_stream(folder)["readable"]))
    others = np.arange(16) != place
    random_ = random.Random(0)
    contents = [b"", b"<html>not an image</html>"]
    contents += [
      content[: random_.randrange(len(content))] for _ in range(flips // 2)
    ]
    contents += [corruption.flip_bit(content, random_) for _ in range(flips)]
    kept = substitutes = 0
    for damaged in contents:
      victim.write_bytes(damaged)
      found = _stream(folder)
      kept += all(
        np.array_equal(found[key][others], clean[key][others]) for key in clean
      )
      substitutes += not found["readable"][place]
    yield Row(
      f"a {suffix.upper()} that is empty, of another type, truncated or has a "
      "flipped bit, among fifteen good images",
      "the stream continues; all other images are in their places, bit for bit",
      len(contents),
      kept,
      f"{substitutes} times a plain image replaced it, else it was decoded",
    )


def _stream(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the first epoch of a folder of sixteen images, as one batch."""
  data = dataclasses.replace(
    tiny_config.config().data,
    source="folder",
    path=str(folder),
    channels=3,
    batch_size=16,
    image_size=(16, 16),
  )
  return next(
    pipeline.train_batches(
      sources.open_source(data, "train"),
      data,
      seed=0,
      rows=np.arange(16),
      unreadable=bad_images.BadImages(max_warnings=0),
    )
  )


def break_disks(count: int, directory: pathlib.Path) -> Iterator[Row]:
  """Fills and removes workdirs of runs, and starts two runs on one workdir."""

  def fill(process: Process, workdir: pathlib.Path) -> pathlib.Path:
    process.limit_files(LOGS_ONLY)
    return workdir

  def move_away(process: Process, workdir: pathlib.Path) -> pathlib.Path:
    return workdir.rename(workdir.with_name("moved"))

  with ForkServer(directory) as fork_server:
    expected = _run_uninterrupted(fork_server, directory)
    for fault, break_disk in (
      ("the disk fills up while training (the size of files is limited)", fill),
      ("the workdir is moved away while training", move_away),
    ):
      random_ = random.Random(0)
      codes: collections.Counter[int] = collections.Counter()
      kept = 0
      for _ in range(count):
        for name in ("broken", "moved"):
          shutil.rmtree(directory / name, ignore_errors=True)
        process = _start(fork_server, directory / "broken")
        process.wait_for("stepping", 10 + random_.randrange(50))
        left = break_disk(process, directory / "broken")
        codes[process.wait()] += 1
        clear = "Traceback" not in process.log.read_text()
        code = _start(fork_server, left).wait()
        kept += clear and not code and _same(left, expected)
      yield Row(
        fault,
        "the run stops with one line that names the last good checkpoint; the "
        "rerun ends like an uninterrupted run",
        count,
        kept if set(codes) == {1} else 0,
        f"exit codes {dict(codes)}",
      )
    yield _two_runs(fork_server, directory, count)


def _two_runs(
  fork_server: ForkServer, directory: pathlib.Path, count: int
) -> Row:
  kept = 0
  for _ in range(count):
    shutil.rmtree(directory / "shared", ignore_errors=True)
    first = _start(fork_server, directory / "shared")
    first.wait_for("compiling")
    second = _start(fork_server, directory / "shared")
    kept += second.wait() == 1 and "in use by another" in second.log.read_text()
    first.signal(signal.SIGKILL)
    first.wait()
  return Row(
    "a second run on the workdir of a running one",
    "refused with one line",
    count,
    kept,
    "",
  )


def make_mistakes(directory: pathlib.Path) -> Iterator[Row]:
  """Starts runs with common mistakes on the command line."""
  (directory / "empty").mkdir()
  kept, slowest = 0, 0.0
  with ForkServer(directory) as fork_server:
    for mistake in MISTAKES:
      args = mistake.replace("EMPTY", str(directory / "empty")).split(" | ")
      begin = time.monotonic()
      process = fork_server.start(
        ["--config=configs/digits.py", f"--workdir={directory / 'w'}", *args]
      )
      code = process.wait()
      slowest = max(slowest, time.monotonic() - begin)
      lines = process.log.read_text().strip().splitlines()
      clear = len(lines) == 1 and lines[0].startswith("error: ")
      kept += code == 1 and clear
      if code != 1 or not clear:
        print(f"{mistake}: {code} {lines[-3:]}")
  yield Row(
    "mistakes on the command line",
    "one line with the value and the way out, and exit code 1, before training",
    len(MISTAKES),
    kept,
    f"the slowest took {slowest:.1f} s after the imports",
  )


def _start(fork_server: ForkServer, workdir: pathlib.Path) -> Process:
  return fork_server.start([*kill_and_resume.SETTINGS, f"--workdir={workdir}"])


def _run_uninterrupted(
  fork_server: ForkServer, directory: pathlib.Path
) -> dict[str, Any]:
  _start(fork_server, directory / "whole").wait()
  return run_outputs.read_all(directory / "whole")


def _same(workdir: pathlib.Path, expected: dict[str, Any]) -> bool:
  """Compares outputs of runs; the steps of checkpoints may differ."""
  found = run_outputs.read_all(workdir)
  names = expected.keys() - {"steps of checkpoints"}
  return all(found[name] == expected[name] for name in names)


def _silent() -> contextlib.AbstractContextManager[Any]:
  """Hides the warnings that a fault causes."""
  return contextlib.redirect_stderr(io.StringIO())
