"""The program: `python -m mae_jax.main --config=FILE --workdir=DIR`."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from mae_jax import distributed
from mae_jax.config import Config, from_config_dict, lookup, overrides
from mae_jax.utils import (
  compile_cache,
  console,
  errors,
  signals,
  startup,
  storage,
)
from mae_jax.utils.errors import ConfigError

overrides.register_parsers()
_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The recipe, e.g. configs/digits.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where checkpoints, logs and pictures go."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  None,
  "HOST:PORT of process 0, if there are several; see mae_jax/distributed.",
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "How many there are."
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "Which of them this one is, from 0."
)
_START_SECONDS = flags.DEFINE_float(
  "start_seconds", 300, "How long processes wait for each other.", 1
)
_HEARTBEAT_SECONDS = flags.DEFINE_float(
  "heartbeat_seconds",
  30,
  "Of what silence of a process the others conclude that it is gone.",
  3,
)
_DEBUG = flags.DEFINE_bool("debug", False, "Show where an error was raised.")


Run: TypeAlias = Callable[[Config, str, signals.StopSignals], None]


def _pretrain() -> Run:
  from mae_jax.train.tasks import pretrain

  return pretrain.run


def _finetune() -> Run:
  from mae_jax.train.tasks import finetune

  return finetune.run


def _linprobe() -> Run:
  from mae_jax.train.tasks import linprobe

  return linprobe.run


def _compare() -> Run:
  from mae_jax.train.tasks import finetune, label_efficiency, linprobe, pretrain

  kinds = {
    "finetune": finetune.FinetuneTask,
    "linprobe": linprobe.LinprobeTask,
  }
  return functools.partial(
    label_efficiency.run, kinds=kinds, pretrain=pretrain.run
  )


def _evaluate() -> Run:
  from mae_jax.evals import standalone

  return standalone.run


# Imported when chosen: a task imports TensorFlow, which takes seconds, and a
# wrong setting should be reported before.
TASKS: dict[str, Callable[[], Run]] = {
  "pretrain": _pretrain,
  "finetune": _finetune,
  "linprobe": _linprobe,
  "label_efficiency": _compare,
  "evaluate": _evaluate,
}


def _split_cpu(devices: int) -> None:
  jax.config.update("jax_num_cpu_devices", devices)
  # XLA starts as many threads as there are cores. The collectives of one device
  # could take those that another one needs to join them, and wait for ever.
  os.environ.setdefault("NPROC", str(4 * max(devices, os.cpu_count() or 1)))


def parse_flags(argv: list[str]) -> list[str]:
  """Reads the command line and the config file, which may be any program."""
  return overrides.parse(argv, _CONFIG)


def _unraisable(error: Any) -> None:
  # Of writers that a failed checkpoint leaves behind; it is told elsewhere.
  if "Event loop is closed" not in str(error.exc_value):
    sys.__unraisablehook__(error)


def _main(argv: list[str]) -> None:
  """Runs the task that the config names."""
  startup.start_timer()
  # JAX tells of each kind of device that it did not find, Orbax shows whole
  # traces of what is told in a line below.
  logging.set_verbosity(logging.FATAL)
  if not _DEBUG.value:
    sys.unraisablehook = _unraisable
  try:
    if len(argv) > 1:
      raise ConfigError(f"{argv[1]!r} is not a flag: write --name=value")
    config = from_config_dict(_CONFIG.value)
    imported = lookup(TASKS, config.task, "task")
    if not _WORKDIR.value:
      raise ConfigError("--workdir is missing: name a directory")
    storage.make_directory(_WORKDIR.value, "--workdir")
    compile_cache.enable(config.train.compile_cache)
    place = distributed.detect(
      _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    )
    if config.mesh.cpu_devices:
      _split_cpu(config.mesh.cpu_devices)
    stop = signals.StopSignals(
      config.train.shutdown_timeout,
      together=place is not None,
      on_leave=distributed.announce_exit,
    )
    stop.install()
    if place:
      distributed.start(
        place,
        start_seconds=_START_SECONDS.value,
        heartbeat=_HEARTBEAT_SECONDS.value,
      )
      distributed.check_same_settings(config)
      startup.mark("processes")
    run = imported()
    startup.mark("imports")
    run(config, _WORKDIR.value, stop)
  except signals.RunInterrupted as stopped:
    if console.is_first():
      console.info(str(stopped))
    distributed.finish(signals.EXIT_CODE)
    sys.exit(signals.EXIT_CODE)
  except Exception as error:
    distributed.exit_if_peer_lost(error)
    line = errors.explain(error)
    if _DEBUG.value or line is None:
      if not distributed.single_process():
        traceback.print_exc()
        distributed.fail(1, line or console.first_line(error))
      raise
    distributed.fail(1, line)
    sys.exit(f"{console.prefix()}error: {line}")
  distributed.finish(0)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the program; `argv` is what follows its name."""
  app.run(
    _main,
    argv=None if argv is None else ["mae_jax", *argv],
    flags_parser=parse_flags,
  )


if __name__ == "__main__":
  main()
