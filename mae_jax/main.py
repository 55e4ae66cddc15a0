"""The program: `python -m mae_jax.main --config=FILE --workdir=DIR`."""

from __future__ import annotations

import os
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from mae_jax import config as config_lib

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The recipe, e.g. configs/digits.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where checkpoints, logs and pictures go."
)
_DEBUG = flags.DEFINE_bool("debug", False, "Show where an error was raised.")
flags.mark_flags_as_required(["config", "workdir"])


def _pretrain(config: config_lib.Config, workdir: str) -> None:
  from mae_jax.train import pretrain

  pretrain.run(config, workdir)


# Imported when chosen: a task imports TensorFlow, which takes seconds, and a
# wrong setting should be reported before.
TASKS = {"pretrain": _pretrain}


def _split_cpu(devices: int) -> None:
  jax.config.update("jax_num_cpu_devices", devices)
  # XLA starts as many threads as there are cores. The collectives of one device
  # could take those that another one needs to join them, and wait for ever.
  os.environ.setdefault("NPROC", str(4 * max(devices, os.cpu_count() or 1)))


def parse_flags(argv: list[str]) -> list[str]:
  """Reads the command line and the config file, which may be any program."""
  try:
    rest = flags.FLAGS(argv)
    _CONFIG.value.to_dict()  # raises what went wrong with the file
    return rest
  except Exception as error:
    if any(each.startswith("--debug") for each in argv):
      raise
    text = str(error).replace("\\n", " ").replace("\\'", "'")
    if "Traceback" in text:  # of the config file, of which the end counts
      text = text.strip().splitlines()[-1]
    sys.exit(f"error: {' '.join(text.split())}")


def main(argv: list[str]) -> None:
  """Runs the task that the config names."""
  # JAX tells of each kind of device that it did not find.
  logging.set_verbosity(logging.WARNING)
  try:
    if len(argv) > 1:
      raise config_lib.ConfigError(
        f"{argv[1]!r} is not a flag: write --name=value"
      )
    if not _WORKDIR.value:
      raise config_lib.ConfigError("--workdir is empty: name a directory")
    config = config_lib.from_config_dict(_CONFIG.value)
    task = config_lib.lookup(TASKS, config.task, "task")
    if config.mesh.cpu_devices:
      _split_cpu(config.mesh.cpu_devices)
    task(config, _WORKDIR.value)
  except (config_lib.ConfigError, config_lib.TrainingError) as error:
    if _DEBUG.value:
      raise
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
