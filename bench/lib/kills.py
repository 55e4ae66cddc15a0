"""Kills a run at random moments, and compares what it leaves with a whole one.

Each life of a run is sent SIGKILL in one phase after another, in random order,
a random moment after that phase began; then the same command is started again,
until it ends by itself. Then its metrics, its TensorBoard events, its pictures
and the checksums of its parameters and optimizer state must be those of a run
that was never killed; and another run begins, until there were as many kills as
asked for.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import random
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from typing import Any

from tensorboardX.proto import event_pb2

from bench.lib import processes
from mae_jax.train import metrics

# A run of a few seconds with everything in it: fifteen saves, two evaluations.
SETTINGS = (
  "--config=configs/digits.py",
  "--config.train.length=90 steps",
  "--config.train.log_every=3 steps",
  "--config.train.save_every=6 steps",
  "--config.optim.warmup=9 steps",
  "--config.eval.every=45 steps",
  "--config.eval.shots=2",
  "--config.eval.num_trials=1",
  "--config.eval.images=2",
  "--config.eval.raw_pixels=False",
  "--config.eval.max_train=64",
  "--config.model.depth=1",
  "--config.model.width=32",
  "--config.model.mlp_dim=64",
  "--config.model.decoder_width=16",
  "--config.model.unroll=1",
  "--config.data.batch_size=32",
)
# How long after the start of a phase at most, in seconds.
DELAYS = {
  "starting": 2.0,
  "compiling": 3.0,
  "stepping": 0.5,
  "saving": 0.25,
  "evaluating": 1.5,
}


REPEATED = ("stepping", "saving")


@dataclasses.dataclass
class Report:
  """What came of it.

  Attributes:
    kills: by phase.
    runs: how many ended by themselves and were compared.
    differences: one text for each thing that was not as it should be.
  """

  kills: collections.Counter[str]
  runs: int = 0
  differences: list[str] = dataclasses.field(default_factory=list)


def run(
  kills: int,
  directory: pathlib.Path,
  seed: int = 0,
  tell: Callable[[str], None] = lambda text: None,
) -> Report:
  """Kills so many times, and runs to the end once more.

  Args:
    kills: how many.
    directory: an empty one, for workdirs and logs.
    seed: of phases and moments; how far a process got by then is chance.
    tell: takes a line of progress.
  """
  moments = _moments(random.Random(seed))
  report = Report(collections.Counter())
  with processes.Nursery(directory) as nursery:
    whole = directory / "whole"
    code = nursery.start([*SETTINGS, f"--workdir={whole}"]).wait()
    if code:
      report.differences.append(f"the run never killed ended with {code}")
      return report
    expected = remains(whole)
    while report.kills.total() < kills or not report.runs:
      workdir = directory / "killed"
      shutil.rmtree(workdir, ignore_errors=True)
      before = report.kills.total()
      code = _until_the_end(nursery, workdir, kills, report.kills, moments)
      report.runs += 1
      if code:
        report.differences.append(f"run {report.runs} ended with {code}")
        break
      found = remains(workdir)
      report.differences += [
        f"run {report.runs}: {name} differ"
        for name in expected
        if found[name] != expected[name]
      ]
      tell(
        f"run {report.runs} ended after {report.kills.total() - before} kills; "
        f"{report.kills.total()} in all, {len(report.differences)} differences"
      )
  return report


def _moments(random_: random.Random) -> Iterator[tuple[str, int, float]]:
  """When to kill: a phase, not before which one of them, seconds into it.

  All phases in random order, again and again.
  """
  while True:
    for phase in random_.sample(processes.PHASES, len(processes.PHASES)):
      # Of the phases that come again and again, not always the first.
      number = random_.randrange(30) if phase in REPEATED else 0
      yield phase, number, random_.uniform(0, DELAYS[phase])


def _until_the_end(
  nursery: processes.Nursery,
  workdir: pathlib.Path,
  kills: int,
  killed: collections.Counter[str],
  moments: Iterator[tuple[str, int, float]],
) -> int:
  """Starts the same command again and again; its last exit code."""
  while True:
    life = nursery.start([*SETTINGS, f"--workdir={workdir}"])
    if killed.total() >= kills:
      return life.wait()
    wanted, number, delay = next(moments)
    life.wait_for(wanted, number)
    life.join(delay)
    phase = life.phase[0]
    life.signal(signal.SIGKILL)
    code = life.wait()
    if code != -signal.SIGKILL:  # it was faster
      return code
    killed[phase] += 1


def remains(workdir: pathlib.Path) -> dict[str, Any]:
  """What a run left, without what depends on the clock."""
  steps = [
    int(path.name)
    for path in (workdir / "checkpoints").iterdir()
    if path.name.isdigit()
  ]
  picture = workdir / "reconstructions.png"
  newest = workdir / "checkpoints" / str(max(steps))
  loop = json.loads((newest / "loop" / "metadata").read_text())
  return {
    "metrics": records(workdir),
    "TensorBoard events": [
      (
        event.step,
        value.tag,
        value.image.encoded_image_string or value.simple_value,
      )
      for event in events(workdir)
      for value in event.summary.value
      if value.tag not in metrics.TIMING
    ],
    "pictures": picture.read_bytes() if picture.exists() else None,
    "kept checkpoints": sorted(steps),
    "state": (loop["step"], loop["health"], loop["checksums"]),
  }


def records(workdir: pathlib.Path) -> list[dict[str, float]]:
  """The lines of metrics.jsonl without what depends on the clock."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if k not in metrics.TIMING}
    for line in lines
  ]


def events(workdir: pathlib.Path) -> list[event_pb2.Event]:
  """All TensorBoard events: of each, length, checksum, bytes, checksum."""
  found = []
  for path in sorted((workdir / "tensorboard").iterdir()):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack("<Q", data[:8])
      found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
      data = data[16 + length :]
  return found
