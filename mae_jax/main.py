"""Trains or evaluates: `python -m mae_jax.main --config=RECIPE --workdir=DIR`.

The task in the config says what runs; `train/tasks` says where it lives.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging as absl_logging

from mae_jax import distributed
from mae_jax.config import Config
from mae_jax.tools import cli
from mae_jax.train import tasks
from mae_jax.utils import (
  compile_cache,
  console,
  errors,
  extras,
  signals,
  startup,
  storage,
)
from mae_jax.utils.errors import ConfigError

_OPEN_FILES = 4096


def train(
  config: Config,
  *,
  workdir: cli.Path,
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  start_seconds: float = 300.0,
  heartbeat_seconds: float = 30.0,
  stop: signals.StopSignals | None = None,
) -> None:
  """Trains or evaluates what a config names.

  A run that was interrupted resumes: start the same command again.

  Args:
    config: the recipe, for instance digits.
    workdir: the directory for checkpoints, logs and pictures.
    coordinator: HOST:PORT of process 0, if there are several processes.
    num_processes: the number of processes.
    process_id: the number of this process, from 0.
    start_seconds: processes wait this long for each other at the start.
    heartbeat_seconds: a process that is silent this long counts as lost.
    stop: signals that this process listens for; None to listen from now on.
  """
  if not workdir:
    raise ConfigError("--workdir is empty: give a directory")
  cli.at_least("start_seconds", start_seconds, 1)
  cli.at_least("heartbeat_seconds", heartbeat_seconds, 3)
  errors.require(extras.TRAIN, "train")
  _allow_files()
  storage.make_directory(workdir, "--workdir")
  compile_cache.enable(config.train.compile_cache)
  process = distributed.detect(coordinator, num_processes, process_id)
  if config.mesh.cpu_devices:
    _split_cpu(config.mesh.cpu_devices)
  stop = stop or _listen()
  stop.grace_seconds = config.train.shutdown_timeout
  stop.together = process is not None
  if process:
    distributed.start(
      process, start_seconds=start_seconds, heartbeat=heartbeat_seconds
    )
    distributed.check_same_settings(config)
    startup.mark("processes")
  run = tasks.runner(config.task)
  startup.mark("imports")
  run(config, workdir, stop)


def _allow_files() -> None:
  """Raises the limit of open files, which is low on some systems.

  Raises:
    ConfigError: if it is too low for a checkpoint and cannot be raised.
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  allowed = [x for x in (soft, hard) if x != resource.RLIM_INFINITY]
  if soft in allowed and soft < _OPEN_FILES:
    soft = _OPEN_FILES if len(allowed) == 1 else min(hard, _OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
  if soft in allowed and soft < 128:
    raise ConfigError(
      f"this shell allows {soft} open files, and a run needs up to "
      f"{_OPEN_FILES}: raise the limit (ulimit -n {_OPEN_FILES})"
    )


def _listen() -> signals.StopSignals:
  stop = signals.StopSignals(on_exit=distributed.announce_exit)
  stop.install()
  return stop


def _split_cpu(devices: int) -> None:
  jax.config.update("jax_num_cpu_devices", devices)
  # XLA starts as many threads as there are cores. The collectives of one device
  # could occupy those that another device needs to join them, and hang.
  os.environ.setdefault("NPROC", str(4 * max(devices, os.cpu_count() or 1)))


def _unraisable(error: Any) -> None:
  # Writers of a failed checkpoint leave this behind; it is reported elsewhere.
  if "Event loop is closed" not in str(error.exc_value):
    sys.__unraisablehook__(error)


def main(argv: Sequence[str] | None = None, command: str = "train") -> None:
  """Runs the command.

  Args:
    argv: its arguments; None for those of the process.
    command: train or evaluate, for the help.

  Raises:
    SystemExit: with 75 if a signal interrupted the run, or with one line.
  """
  startup.start_timer()
  console.open_streams()
  # JAX logs each kind of device that it does not find, and Orbax logs whole
  # traces of errors that are reported in a line below.
  absl_logging.set_verbosity(absl_logging.FATAL)
  argv = sys.argv[1:] if argv is None else argv
  debug = "--debug" in argv
  if not debug:
    sys.unraisablehook = _unraisable
    # The same for its writers that have an error of their own.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  try:
    stop = _listen()
    values = cli.parse(train, command, argv)
    debug = values.pop("debug")
    train(**values, stop=stop)
  except signals.RunInterrupted as stopped:
    signals.ignore()
    if console.is_first():
      console.info(str(stopped))
    distributed.finish(signals.EXIT_CODE)
    # A thread of an interrupted evaluation may still run native code.
    signals.exit_now(signals.EXIT_CODE)
  except Exception as error:
    distributed.exit_if_peer_lost(error)
    line = errors.explain(error)
    if debug or line is None:
      if not distributed.single_process():
        traceback.print_exc()
        distributed.fail(1, line or console.first_line(error))
      raise
    distributed.fail(1, line)
    sys.exit(f"{console.prefix()}error: {line}")
  distributed.finish(0)


if __name__ == "__main__":
  signals.run_process(main)
