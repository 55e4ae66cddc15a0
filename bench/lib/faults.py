"""The faults, section by section; each gives rows of the table."""

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

from bench.lib import corruption, kill_and_resume, run_outputs
from bench.lib.fork_server import PHASES, ForkServer, Process
from mae_jax import checkpoints
from mae_jax.config import Config, EvalConfig
from mae_jax.data import bad_images, pipeline, sources
from mae_jax.train import step as program
from tests.helpers import runs, tiny

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


# Bytes: more than a log of these runs has, less than a checkpoint's files.
LOGS_ONLY = 40_000


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of the table.

  Attributes:
    fault: what was done.
    promise: what should come of it.
    tried: how often it was done.
    kept: how often that came of it.
    seen: what did, in words.
  """

  fault: str
  promise: str
  tried: int
  kept: int
  seen: str


def kill_at_random(count: int, directory: pathlib.Path) -> Iterator[Row]:
  """SIGKILL in every phase."""
  report = kill_and_resume.run(
    count, directory, report_progress=lambda text: print(f"  {text}")
  )
  for difference in report.differences:
    print(difference)
  for phase in PHASES:
    number = report.kills[phase]
    yield Row(
      f"SIGKILL while {phase}",
      "the rerun's metrics, events, pictures and state are bit for bit those "
      "of a run never killed",
      number,
      0 if report.differences else number,
      f"{report.runs} runs compared over all phases, "
      f"{len(report.differences)} differences",
    )


def stop_at_random(count: int, directory: pathlib.Path) -> Iterator[Row]:
  """SIGTERM and Ctrl-C once training has begun."""
  random_ = random.Random(0)
  with ForkServer(directory) as fork_server:
    expected = _whole(fork_server, directory)
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
        "saves and leaves with 75; the rerun ends as if nothing had been",
        count,
        kept if set(codes) == {75} else 0,
        f"exit codes {dict(codes)}; the longest took {longest:.1f} s",
      )


def harm_checkpoints(flips: int, directory: pathlib.Path) -> Iterator[Row]:
  """Every file of the newest checkpoint, in every way."""
  every = {"length": "4 steps", "save_every": "2 steps"}
  config = tiny.config(train=every, eval=EvalConfig(images=0))
  saved = directory / "saved"
  with _silent():
    runs.train(config, saved)
  restore = _restorer(config)
  older = shutil.copytree(saved, directory / "older")
  shutil.rmtree(older / "checkpoints" / "4")
  good = {4: restore(saved), 2: restore(older)}
  newest = saved / "checkpoints" / "4"
  files = [
    path.relative_to(saved) for path in newest.rglob("*") if path.is_file()
  ]
  tried: collections.Counter[str] = collections.Counter()
  kept, unharmed = tried.copy(), tried.copy()
  random_ = random.Random(0)
  for name in sorted(files):
    content = (saved / name).read_bytes()
    for kind, harm in corruption.harms(content, random_, flips):
      copy = directory / "harmed"
      shutil.rmtree(copy, ignore_errors=True)
      shutil.copytree(saved, copy)
      corruption.apply(copy / name, harm)
      with _silent():
        state = restore(copy)
      step = int(state.step)
      tried[kind] += 1
      kept[kind] += _equal(state, good[step])
      unharmed[kind] += step == 4
  for kind, number in tried.items():
    yield Row(
      f"a file of the newest checkpoint {kind} ({len(files)} files)",
      "what is restored is what was saved, or the checkpoint before it",
      number,
      kept[kind],
      f"{unharmed[kind]} times the harm changed nothing, "
      f"{number - unharmed[kind]} times the one before was used",
    )


def _restorer(
  config: Config,
) -> Callable[[pathlib.Path], checkpoints.TrainState]:
  mesh = runs.devices_mesh()
  task, _ = runs.open_task(config, mesh)
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


def harm_images(flips: int, directory: pathlib.Path) -> Iterator[Row]:
  """Image files of each kind, among others, in a training stream."""
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
    harms = [b"", b"<html>not an image</html>"]
    harms += [
      content[: random_.randrange(len(content))] for _ in range(flips // 2)
    ]
    harms += [corruption.flipped(content, random_) for _ in range(flips)]
    kept = substitutes = 0
    for harm in harms:
      victim.write_bytes(harm)
      found = _stream(folder)
      kept += all(
        np.array_equal(found[key][others], clean[key][others]) for key in clean
      )
      substitutes += not found["readable"][place]
    yield Row(
      f"a {suffix.upper()} empty, of wrong type, truncated or with a flipped "
      "bit, among fifteen good ones",
      "the stream goes on, with every other image in its place, to the bit",
      len(harms),
      kept,
      f"{substitutes} times a substitute stood for it, else it was decoded",
    )


def _stream(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """The first epoch of a folder of sixteen, in one batch."""
  data = dataclasses.replace(
    tiny.config().data,
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
  """Full and vanished workdirs, and two runs on one, under the program."""

  def fill(process: Process, workdir: pathlib.Path) -> pathlib.Path:
    process.limit_files(LOGS_ONLY)
    return workdir

  def move_away(process: Process, workdir: pathlib.Path) -> pathlib.Path:
    return workdir.rename(workdir.with_name("moved"))

  with ForkServer(directory) as fork_server:
    expected = _whole(fork_server, directory)
    for fault, harm in (
      ("the disk is full (size of files limited) while training", fill),
      ("the workdir vanishes while training", move_away),
    ):
      random_ = random.Random(0)
      codes: collections.Counter[int] = collections.Counter()
      kept = 0
      for _ in range(count):
        for name in ("broken", "moved"):
          shutil.rmtree(directory / name, ignore_errors=True)
        process = _start(fork_server, directory / "broken")
        process.wait_for("stepping", 10 + random_.randrange(50))
        left = harm(process, directory / "broken")
        codes[process.wait()] += 1
        clear = "Traceback" not in process.log.read_text()
        code = _start(fork_server, left).wait()
        kept += clear and not code and _same(left, expected)
      yield Row(
        fault,
        "the run stops with one line and the last good checkpoint; the rerun "
        "ends as if nothing had been",
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
    "a second run on a workdir", "refused with one line", count, kept, ""
  )


def make_mistakes(directory: pathlib.Path) -> Iterator[Row]:
  """What people type."""
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
      told = process.log.read_text().strip().splitlines()
      clear = len(told) == 1 and told[0].startswith("error: ")
      kept += code == 1 and clear
      if code != 1 or not clear:
        print(f"{mistake}: {code} {told[-3:]}")
  yield Row(
    "mistakes on the command line",
    "one line with the value and the way out, exit code 1, before training",
    len(MISTAKES),
    kept,
    f"the slowest took {slowest:.1f} s after the imports",
  )


def _start(fork_server: ForkServer, workdir: pathlib.Path) -> Process:
  return fork_server.start([*kill_and_resume.SETTINGS, f"--workdir={workdir}"])


def _whole(fork_server: ForkServer, directory: pathlib.Path) -> dict[str, Any]:
  _start(fork_server, directory / "whole").wait()
  return run_outputs.read_all(directory / "whole")


def _same(workdir: pathlib.Path, expected: dict[str, Any]) -> bool:
  """Whether a run left what another did; how many saves it took may differ."""
  found = run_outputs.read_all(workdir)
  names = expected.keys() - {"steps of checkpoints"}
  return all(found[name] == expected[name] for name in names)


def _silent() -> contextlib.AbstractContextManager[Any]:
  """Hides the warnings of one fault."""
  return contextlib.redirect_stderr(io.StringIO())
