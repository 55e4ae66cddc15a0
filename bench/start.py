"""What a run takes to start, to go on, to save and to stop.

    python -m bench.start

It writes `bench/results/start.md` and `bench/results/start.png`. Whole runs of
the program as a user starts them, each kind in turn, several rounds; a signal
ends them after their first step. What a save costs is measured within one run,
of ViT-B: steps with a save among them against as many that follow without.
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
from mae_jax.tools.plan import format
from mae_jax.train import metrics
from mae_jax.utils import signals, startup

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

# There is nothing to evaluate: only the start is wanted.
DIGITS = (
  "--config=configs/digits.py",
  "--config.data.eval_split=",
  "--config.eval.images=0",
  "--config.train.log_every=1 steps",
)
# The state of ViT-B with small images, so that a step is mostly its update.
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
Measured while the start was made shorter, on a busy machine with two cores:

- Compiling the train step in a thread while the state is made: 19 s of the
  clock for both instead of 15, 14 s of CPU time instead of 11. A mistake found
  meanwhile would also have its process wait for the compiler. Where a start
  matters most, after a stop, `train.compile_cache` leaves little to hide.
- Compiling the first state while TensorFlow is imported: 24 s of the clock for
  both instead of 31, in a second try 16 instead of 18 (7.4 s of CPU time, 7.0
  before). Only a new run with nothing compiled has that, and `main` would have
  to know the programs of tasks before there are data to tell their sizes.
- Compiling the first state with `xla_backend_optimization_level=1`: 1.3 s less,
  and bits that depend on what XLA does at that level. At 0 it is another state.
"""


class Seen(NamedTuple):
  """A start, in seconds, and the stop after it."""

  clock: float  # from the command to the first step
  cpu: float
  parts: Mapping[str, float]
  stop: float  # from the signal to the end of the process


class Watched:
  """The program, and its CPU time by the clock."""

  def __init__(self, *args: str):
    """Starts it, with the flags of `main`."""
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
    """Looks at its CPU time; returns whether it still runs."""
    if self._process.poll() is not None:
      return False
    times = self._tree.cpu_times()
    self._samples.append((time.time(), times.user + times.system))
    time.sleep(0.01)
    return True

  def cpu(self, at: float) -> float:
    """Seconds of CPU time at a time of the clock."""
    clocks, used = zip(*self._samples, strict=True)
    return float(np.interp(at, clocks, used))

  def end(self, code: int) -> float:
    """Waits until it ends, as it should; returns when."""
    while self.sample():
      pass
    ended = time.time()
    self._reader.join()
    if self._process.returncode != code:
      raise RuntimeError("".join(self._errors)[-2000:])
    return ended

  def stop(self) -> float:
    """Has it save and leave; returns the seconds that takes."""
    asked = time.time()
    self._process.send_signal(signal.SIGTERM)
    return self.end(signals.EXIT_CODE) - asked

  def _read(self) -> None:
    assert self._process.stderr is not None
    self._errors.extend(self._process.stderr)


def start(workdir: pathlib.Path, cache: pathlib.Path) -> Seen:
  """Runs the digits to their next step."""
  log = workdir / "metrics.jsonl"
  before = _lines(log)
  run = Watched(
    *DIGITS, f"--workdir={workdir}", f"--config.train.compile_cache={cache}"
  )
  while len(lines := _lines(log)) <= len(before):
    if not run.sample():
      run.end(signals.EXIT_CODE)
  told = json.loads(lines[len(before)])
  # The process began a little after the command, and what it measures ends with
  # its step: what it does afterwards does not count.
  while (first := _event(workdir, told["step"], run.began)) is None:
    if not run.sample():
      run.end(signals.EXIT_CODE)
  clock, cpu = first - run.began, run.cpu(first)
  parts = {part: told.get(f"start_{part}", 0.0) for part in startup.PARTS}
  return Seen(clock, cpu, parts, run.stop())


def _event(workdir: pathlib.Path, step: int, after: float) -> float | None:
  """When a step was told, if it is: its line is written a moment before."""
  for path in sorted((workdir / "tensorboard").iterdir()):
    for _, event in metrics.events(path.read_bytes()):
      if event.step == step and event.wall_time > after:
        return float(event.wall_time)
  return None


def _lines(log: pathlib.Path) -> list[str]:
  text = log.read_text() if log.exists() else ""
  return text[: text.rfind("\n") + 1].splitlines()


def starts(rounds: int) -> dict[tuple[str, str], list[Seen]]:
  """Every kind of start in turn."""
  found: dict[tuple[str, str], list[Seen]] = {kind: [] for kind in KINDS}
  for k in range(rounds):
    print(f"round {k + 1} of {rounds} ...", flush=True)
    with tempfile.TemporaryDirectory() as directory:
      place = pathlib.Path(directory)
      caches = {COLD: place / "new cache", WARM: place / "cache"}
      # The first fills the cache of those that find everything there.
      found["new", COLD].append(start(place / "a", caches[WARM]))
      found["new", WARM].append(start(place / "b", caches[WARM]))
      found["resumed", COLD].append(start(place / "a", caches[COLD]))
      found["resumed", WARM].append(start(place / "b", caches[WARM]))
  return found


class Save(NamedTuple):
  """What one checkpoint cost, in seconds."""

  step: float  # a step without it
  lost: float  # of the clock, by all the steps beside it
  cpu: float  # likewise, of CPU time
  first: float  # of the clock, by the step right after it
  writing: float  # until it was whole


def saves(number: int, window: int) -> tuple[list[Save], int]:
  """Checkpoints of a run, and the size of one in bytes."""
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
    run = Watched(
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
    # The last checkpoint was waited for.
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
  """How long a checkpoint was written, and its size."""
  told = json.loads(path.read_text())
  nanoseconds = told["commit_timestamp_nsecs"] - told["init_timestamp_nsecs"]
  files = [x for x in path.parent.rglob("*") if x.is_file()]
  return nanoseconds / 1e9, sum(x.stat().st_size for x in files)


def middle(values: Sequence[float], digits: int = 1) -> str:
  """The median, with the smallest and the largest."""
  low, high = min(values), max(values)
  return (
    f"{np.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
  )


def start_rows(
  found: Mapping[tuple[str, str], Sequence[Seen]],
) -> Iterator[list[str]]:
  """The table of starts, under `start_headings`."""
  for kind, seen in found.items():
    parts = [[each.parts[part] for each in seen] for part in shown(found)]
    yield [
      *kind,
      middle([each.clock for each in seen]),
      middle([each.cpu for each in seen]),
      *(f"{np.median(part):.1f}" for part in parts),
      middle([each.stop for each in seen]),
    ]


def shown(found: Mapping[tuple[str, str], Sequence[Seen]]) -> list[str]:
  """The parts that took any time."""
  every = [each for seen in found.values() for each in seen]
  return [
    part
    for part in startup.PARTS
    if max(each.parts[part] for each in every) >= 0.05
  ]


def draw(
  found: Mapping[tuple[str, str], Sequence[Seen]], path: pathlib.Path
) -> None:
  """The parts of each kind of start, end to end."""
  figure = Figure(figsize=(8, 2.4), layout="constrained")
  backend_agg.FigureCanvasAgg(figure)
  axes = figure.subplots()
  names = [", ".join(kind) for kind in found]
  left = np.zeros(len(names))
  for part in shown(found):
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
  found: Mapping[tuple[str, str], Sequence[Seen]],
  costs: Sequence[Save],
  size: int,
  window: int,
) -> str:
  """What `start.md` says."""
  rounds = len(found["new", COLD])
  times = "once" if rounds == 1 else f"{rounds} rounds"
  headings = [
    "run",
    "`train.compile_cache`",
    "to the first step",
    "CPU time",
    *(startup.PARTS[part] for part in shown(found)),
    "SIGTERM to the end",
  ]
  saving = {
    "a step": [1e3 * x.step for x in costs],
    "lost to a save": [1e3 * x.lost for x in costs],
    "of that, by the next step": [1e3 * x.first for x in costs],
    "CPU time of a save": [1e3 * x.cpu for x in costs],
    "until it is written": [1e3 * x.writing for x in costs],
  }
  rows = [[name, f"{middle(x, 0)} ms"] for name, x in saving.items()]
  late = sum(x.writing > window * x.step for x in costs)
  note = (
    f"\n{late} of them were still being written after {window} steps, and cost "
    "more than is seen here.\n"
    if late
    else ""
  )
  return f"""# What a run takes to start, to go on, to save and to stop

Written by `python -m bench.start` (`make start`). Seconds; medians, with the
smallest and largest.
{machine.about(PACKAGES)}.

## To the first step

`configs/digits.py` on the CPU, {times}, each kind in turn; a resumed run
reads what another one had saved when it was stopped. The parts are what the
program says itself, in a line and in `metrics.jsonl`. CPU time is that of all
threads, to the same moment.

{format.table(list(start_rows(found)), headings)}

![the parts of each kind of start](start.png)

## A save

Pre-training of ViT-B with its optimizer, {size / 1e9:.2f} GB on disk, on the
CPU; 2 images of 32 x 32, so that a step is mostly the update of parameters,
which wants the cores and the memory that writing wants too. Lost is what the
{window} steps after a save took more than the {window} after them;
{len(costs)} saves of one run. With an accelerator, a step waits until the state
is in the host's memory, and what is written then competes with the input
pipeline alone: that was not measured.

{format.table(rows, ["", "median (smallest to largest)"])}
{note}
## Tried, and not adopted

{TRIED}"""


def main() -> None:
  """Measures and writes."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument(
    "--rounds", type=flags.whole(), default=5, help="of starts"
  )
  parser.add_argument("--saves", type=flags.whole(), default=5)
  parser.add_argument(
    "--window", type=flags.whole(), default=12, help="steps, see there"
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
