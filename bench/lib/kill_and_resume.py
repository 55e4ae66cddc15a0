"""Kills runs at random moments, resumes them, and compares their outputs.

A run's process gets SIGKILL a random time after a random phase began. Then the
same command is started again and resumes, until a process ends by itself. Its
outputs must equal those of an uninterrupted run: metrics, TensorBoard events,
pictures, and checksums of the parameters and the optimizer state. Further runs
follow until the requested number of kills is reached.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import random
import shutil
import signal
from collections.abc import Callable, Iterator

from bench.lib import run_outputs
from bench.lib.fork_server import PHASES, ForkServer

# A complete run of a few seconds: fifteen saves and two evaluations.
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
# The longest delay from the start of a phase to the kill, in seconds.
DELAYS = {
  "starting": 2.0,
  "compiling": 3.0,
  "stepping": 0.5,
  "saving": 0.25,
  "evaluating": 1.5,
}
# Phases that a run enters many times.
REPEATED = ("stepping", "saving")


@dataclasses.dataclass
class Report:
  """The result of `run`.

  Attributes:
    kills: number of kills in each phase.
    runs: number of runs that reached their end and were compared.
    differences: one text for each output that differs, or for a failed run.
  """

  kills: collections.Counter[str]
  runs: int = 0
  differences: list[str] = dataclasses.field(default_factory=list)


def run(
  kills: int,
  directory: pathlib.Path,
  seed: int = 0,
  report_progress: Callable[[str], None] = lambda text: None,
) -> Report:
  """Kills and resumes runs, and compares each with an uninterrupted run.

  Args:
    kills: total number of kills.
    directory: empty directory for workdirs and logs.
    seed: seed of phases and delays. The step that a process has reached when it
      is killed still depends on chance.
    report_progress: called with a line of text after each run.
  """
  kill_times = _kill_times(random.Random(seed))
  report = Report(collections.Counter())
  with ForkServer(directory) as fork_server:
    whole = directory / "whole"
    code = fork_server.start([*SETTINGS, f"--workdir={whole}"]).wait()
    if code:
      report.differences.append(f"the uninterrupted run ended with {code}")
      return report
    expected = run_outputs.read_all(whole)
    while report.kills.total() < kills or not report.runs:
      workdir = directory / "killed"
      shutil.rmtree(workdir, ignore_errors=True)
      before = report.kills.total()
      code = _run_to_end(fork_server, workdir, kills, report.kills, kill_times)
      report.runs += 1
      if code:
        report.differences.append(f"run {report.runs} ended with {code}")
        break
      found = run_outputs.read_all(workdir)
      report.differences += [
        f"run {report.runs}: {name} differ"
        for name in expected
        if found[name] != expected[name]
      ]
      report_progress(
        f"run {report.runs} ended after {report.kills.total() - before} kills; "
        f"total: {report.kills.total()} kills, {len(report.differences)} "
        "differences"
      )
  return report


def _kill_times(random_: random.Random) -> Iterator[tuple[str, int, float]]:
  """Yields a phase, how many phases to wait for first, and a delay in seconds.

  All phases come in random order, again and again.
  """
  while True:
    for phase in random_.sample(PHASES, len(PHASES)):
      # A phase that is repeated is not always killed at its first occurrence.
      number = random_.randrange(30) if phase in REPEATED else 0
      yield phase, number, random_.uniform(0, DELAYS[phase])


def _run_to_end(
  fork_server: ForkServer,
  workdir: pathlib.Path,
  kills: int,
  killed: collections.Counter[str],
  kill_times: Iterator[tuple[str, int, float]],
) -> int:
  """Kills and restarts one run until it ends; returns its exit code."""
  while True:
    process = fork_server.start([*SETTINGS, f"--workdir={workdir}"])
    if killed.total() >= kills:
      return process.wait()
    wanted, number, delay = next(kill_times)
    process.wait_for(wanted, number)
    process.join(delay)
    phase = process.phase[0]
    process.signal(signal.SIGKILL)
    code = process.wait()
    if code != -signal.SIGKILL:  # the run ended before the signal
      return code
    killed[phase] += 1
