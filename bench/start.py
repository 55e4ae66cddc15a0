"""Measures how long a run takes to start, resume, save and stop.

    python -m bench.start

It writes `bench/results/start.md` and `bench/results/start.png`. It starts
whole runs as a user does, each kind of start in turn, for several rounds. A
signal stops each run after its first step. The cost of a save is measured
within one run of ViT-B: steps during a save are compared with as many steps
after it.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import psutil
from matplotlib.backends import backend_agg
from matplotlib.figure import Figure
from PIL import Image

from bench.lib import flags, machine, run_outputs
from mae_jax.train.sinks import tensorboard
from mae_jax.utils import signals, startup, tables

OUT = flags.RESULTS / "start.md"
ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("jax", "flax", "orbax-checkpoint", "tensorflow", "numpy")

COLD, WARM = "nothing compiled before", "all compiled before"
KINDS = (
  ("new", COLD),
  ("new", WARM),
  ("resumed", COLD),
  ("resumed", WARM),
)

# Without evaluation, since only the start is measured.
DIGITS = (
  "--config=configs/digits.py",
  "--config.data.eval_split=",
  "--config.eval.images=0",
  "--config.train.log_every=1 steps",
)
# ViT-B with small images, so that a step is mostly the parameter update.
VIT_B = (
  "--config=configs/vit_b.py",
  "--config.data.source=folder",
  "--config.data.image_size=32",
  "--config.data.batch_size=2",
  "--config.data.eval_split=",
  "--config.eval.images=0",
  "--config.model.unroll=1",
  "--config.optim.warmup=1 steps",
  "--config.train.log_every=1 steps",
  "--config.train.keep=1",
)

TRIED = """\
Measured on a busy machine with two cores:

- Compiling the train step in a thread while the state is initialized: 19 s of
  wall time for both instead of 15 s, and 14 s of CPU time instead of 11 s. If
  the program finds a mistake meanwhile, it would also wait for the compiler.
  A start matters most after a stop, and then `train.compile_cache` leaves
  little to hide.
- Compiling the initialization while TensorFlow is imported: 24 s of wall time
  for both instead of 31 s, and 16 s instead of 18 s in a second try (7.4 s of
  CPU time instead of 7.0 s). Only a new run without a compilation cache gains,
  and `main` would have to know the programs of tasks before it knows the sizes
  of the data.
- Compiling the initialization with `xla_backend_optimization_level=1`: 1.3 s
  less, but the bits of the state then depend on that level. Level 0 gives
  another state.
"""


class Start(NamedTuple):
  """A start and the stop after it, in seconds."""

  clock: float  # from the command to the first step
  cpu: float
  parts: Mapping[str, float]
  stop: float  # from the signal to the end of the process


class TimedRun:
  """A run of the program, with samples of its CPU time."""

  def __init__(self, *args: str):
    """Starts the program with flags of `main`."""
    self.began = time.time()
    self._process = subprocess.Popen(
      [sys.executable, "-m", "mae_jax.main", *args],
      cwd=ROOT,
      env=os.environ | {"JAX_PLATFORMS": "cpu"},
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    self._errors: list[str] = []
    self._reader = threading.Thread(target=self._read, daemon=True)
    self._reader.start()
    self._tree = psutil.Process(self._process.pid)
    self._samples = [(self.began, 0.0)]

  def sample(self) -> bool:
    """Samples the CPU time; returns whether the process still runs."""
    if self._process.poll() is not None:
      return False
    times = self._tree.cpu_times()
    self._samples.append((time.time(), times.user + times.system))
    time.sleep(0.01)
    return True

  def cpu(self, at: float) -> float:
    """Returns the CPU seconds used until a time of the clock."""
    clocks, used = zip(*self._samples, strict=True)
    return float(np.interp(at, clocks, used))

  def end(self, code: int) -> float:
    """Waits for the end and checks the exit code; returns the end time."""
    while self.sample():
      pass
    ended = time.time()
    self._reader.join()
    if self._process.returncode != code:
      raise RuntimeError("".join(self._errors)[-2000:])
    return ended

  def stop(self) -> float:
    """Sends SIGTERM; returns the seconds until the process has ended."""
    asked = time.time()
    self._process.send_signal(signal.SIGTERM)
    return self.end(signals.EXIT_CODE) - asked

  def _read(self) -> None:
    assert self._process.stderr is not None
    self._errors.extend(self._process.stderr)


def start(workdir: pathlib.Path, cache: pathlib.Path) -> Start:
  """Starts or resumes a run on digits, and stops it after its next step."""
  log = workdir / "metrics.jsonl"
  before = _lines(log)
  run = TimedRun(
    *DIGITS, f"--workdir={workdir}", f"--config.train.compile_cache={cache}"
  )
  while len(lines := _lines(log)) <= len(before):
    if not run.sample():
      run.end(signals.EXIT_CODE)
  record = json.loads(lines[len(before)])
  # The time from the command to the first step includes the start of the
  # process, and excludes what follows the step.
  while (first := _event(workdir, record["step"], run.began)) is None:
    if not run.sample():
      run.end(signals.EXIT_CODE)
  clock, cpu = first - run.began, run.cpu(first)
  parts = {part: record.get(f"start_{part}", 0.0) for part in startup.PARTS}
  return Start(clock, cpu, parts, run.stop())


def _event(workdir: pathlib.Path, step: int, after: float) -> float | None:
  """Returns the time of a step's event, or None if it is not written yet."""
  for path in sorted((workdir / "tensorboard").iterdir()):
    for _, event in tensorboard.events(path.read_bytes()):
      if event.step == step and event.wall_time > after:
        return float(event.wall_time)
  return None


def _lines(log: pathlib.Path) -> list[str]:
  text = log.read_text() if log.exists() else ""
  return text[: text.rfind("\n") + 1].splitlines()


def starts(rounds: int) -> dict[tuple[str, str], list[Start]]:
  """Measures every kind of start in turn."""
  found: dict[tuple[str, str], list[Start]] = {kind: [] for kind in KINDS}
  for k in range(rounds):
    print(f"round {k + 1} of {rounds} ...", flush=True)
    with tempfile.TemporaryDirectory() as directory:
      place = pathlib.Path(directory)
      caches = {COLD: place / "new cache", WARM: place / "cache"}
      # The first run fills the cache of the WARM starts.
      found["new", COLD].append(start(place / "a", caches[WARM]))
      found["new", WARM].append(start(place / "b", caches[WARM]))
      found["resumed", COLD].append(start(place / "a", caches[COLD]))
      found["resumed", WARM].append(start(place / "b", caches[WARM]))
  return found


class Save(NamedTuple):
  """The cost of one checkpoint, in seconds."""

  step: float  # wall time of a step without a save
  lost: float  # wall time lost by all steps during the save
  cpu: float  # CPU time of the save
  first: float  # wall time lost by the first step after the save
  writing: float  # wall time until the checkpoint was complete


def saves(number: int, window: int) -> tuple[list[Save], int]:
  """Measures checkpoints of a run; returns them and the bytes of one."""
  print(f"{number} saves ...", flush=True)
  with tempfile.TemporaryDirectory() as directory:
    place = pathlib.Path(directory)
    random = np.random.default_rng(0)
    (place / "images").mkdir()
    for k in range(8):
      pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
      Image.fromarray(pixels).save(place / "images" / f"{k}.png")
    workdir = place / "run"
    total = 2 * window * (number + 1)
    run = TimedRun(
      *VIT_B,
      f"--workdir={workdir}",
      f"--config.data.path={place / 'images'}",
      f"--config.train.length={total} steps",
      f"--config.train.save_every={2 * window} steps",
    )
    written: dict[int, tuple[float, int]] = {}
    while run.sample():
      for path in workdir.glob("checkpoints/*/_CHECKPOINT_METADATA"):
        step = path.parent.name
        if step.isdigit() and int(step) not in written:
          written[int(step)] = _written(path)
    run.end(0)
    times = {
      event.step: event.wall_time
      for event in reversed(run_outputs.read_events(workdir))
      if event.step
    }
  found = []
  for saved in range(2 * window, total, 2 * window):
    ends = [times[saved + k * window] for k in range(3)]
    clock = np.diff(ends)
    cpu = np.diff([run.cpu(at) for at in ends])
    step = clock[1] / window
    found.append(
      Save(
        step,
        clock[0] - clock[1],
        cpu[0] - cpu[1],
        times[saved + 1] - times[saved] - step,
        written[saved][0],
      )
    )
  return found, written[2 * window][1]


def _written(path: pathlib.Path) -> tuple[float, int]:
  """Returns the seconds of writing a checkpoint, and its size in bytes."""
  times = json.loads(path.read_text())
  nanoseconds = times["commit_timestamp_nsecs"] - times["init_timestamp_nsecs"]
  files = [x for x in path.parent.rglob("*") if x.is_file()]
  return nanoseconds / 1e9, sum(x.stat().st_size for x in files)


def median_and_range(values: Sequence[float], digits: int = 1) -> str:
  """Returns the median, and the smallest and largest value, as text."""
  low, high = min(values), max(values)
  return (
    f"{np.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
  )


def start_rows(
  found: Mapping[tuple[str, str], Sequence[Start]],
) -> Iterator[list[str]]:
  """Yields the rows of the table of starts."""
  for kind, seen in found.items():
    parts = [[each.parts[part] for each in seen] for part in long_parts(found)]
    yield [
      *kind,
      median_and_range([each.clock for each in seen]),
      median_and_range([each.cpu for each in seen]),
      *(f"{np.median(part):.1f}" for part in parts),
      median_and_range([each.stop for each in seen]),
    ]


def long_parts(found: Mapping[tuple[str, str], Sequence[Start]]) -> list[str]:
  """Returns the parts that took at least 0.05 s in some start."""
  every = [each for seen in found.values() for each in seen]
  return [
    part
    for part in startup.PARTS
    if max(each.parts[part] for each in every) >= 0.05
  ]


def draw(
  found: Mapping[tuple[str, str], Sequence[Start]], path: pathlib.Path
) -> None:
  """Plots the parts of each kind of start, end to end."""
  figure = Figure(figsize=(8, 2.4), layout="constrained")
  backend_agg.FigureCanvasAgg(figure)
  axes = figure.subplots()
  names = [", ".join(kind) for kind in found]
  left = np.zeros(len(names))
  for part in long_parts(found):
    seconds = np.array(
      [np.median([x.parts[part] for x in seen]) for seen in found.values()]
    )
    axes.barh(names, seconds, left=left, label=startup.PARTS[part])
    left += seconds
  axes.invert_yaxis()
  axes.set_xlabel("seconds from the command to the end of the first step")
  figure.legend(fontsize="x-small", loc="outside right upper")
  figure.savefig(path, dpi=120)


def text(
  found: Mapping[tuple[str, str], Sequence[Start]],
  costs: Sequence[Save],
  size: int,
  window: int,
) -> str:
  """Returns the page."""
  rounds = len(found["new", COLD])
  times = "once" if rounds == 1 else f"{rounds} rounds"
  headings = [
    "run",
    "`train.compile_cache`",
    "to the first step",
    "CPU time",
    *(startup.PARTS[part] for part in long_parts(found)),
    "SIGTERM to the end",
  ]
  saving = {
    "a step": [1e3 * x.step for x in costs],
    "lost to a save": [1e3 * x.lost for x in costs],
    "of that, by the next step": [1e3 * x.first for x in costs],
    "CPU time of a save": [1e3 * x.cpu for x in costs],
    "until it is written": [1e3 * x.writing for x in costs],
  }
  rows = [[name, f"{median_and_range(x, 0)} ms"] for name, x in saving.items()]
  late = sum(x.writing > window * x.step for x in costs)
  note = (
    f"\n{late} of them were still being written after {window} steps, and cost "
    "more than these numbers show.\n"
    if late
    else ""
  )
  return f"""# How long a run takes to start, resume, save and stop

Written by `python -m bench.start` (`make start`). All times are
seconds: medians, with the smallest and the largest.
{machine.about(PACKAGES)}.

## To the first step

`configs/digits.py` on the CPU, {times}, each kind in turn. A
resumed run reads the checkpoint that a run saved when it was stopped. The
program itself reports the parts, in a line and in `metrics.jsonl`. CPU time is
that of all threads, to the end of the first step.

{tables.markdown(list(start_rows(found)), headings)}

![the parts of each kind of start](start.png)

## A save

Pre-training of ViT-B with its optimizer, {size / 1e9:.2f} GB on disk, on the
CPU, with 2 images of 32 x 32 pixels. A step is then mostly the parameter
update, which competes with writing for cores and memory. "Lost" is the time
that the {window} steps after a save took more than the next {window} steps, for
{len(costs)} saves of one run. With an accelerator, a step waits only until the
state is in the host's memory. Writing then competes with the input pipeline
only; this was not measured.

{tables.markdown(rows, ["", "median (smallest to largest)"])}
{note}
## Tried, and not adopted

{TRIED}"""


def main() -> None:
  """Measures and writes the page."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument(
    "--rounds", type=flags.whole(), default=5, help="rounds of starts"
  )
  parser.add_argument(
    "--saves", type=flags.whole(), default=5, help="number of saves"
  )
  parser.add_argument(
    "--window",
    type=flags.whole(),
    default=12,
    help="steps to compare after each save",
  )
  parser.add_argument("--out", type=flags.page, default=OUT)
  settings = parser.parse_args()
  found = starts(settings.rounds)
  costs, size = saves(settings.saves, settings.window)
  written = text(found, costs, size, settings.window)
  draw(found, settings.out.with_suffix(".png"))
  settings.out.write_text(written)
  print(written)


if __name__ == "__main__":
  main()
