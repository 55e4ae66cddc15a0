"""Says what is in the data of a config, and what is wrong with it.

python -m mae_jax.data.inspect --config=FILE [--config.data.path=DIR]
"""

from __future__ import annotations

import os

from absl import app, flags
from ml_collections import config_flags

from mae_jax import command_line
from mae_jax import config as config_lib
from mae_jax.data import doctor

command_line.register_parsers()
_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The recipe, e.g. configs/vit_l.py.", lock_config=True
)
_LIMIT = flags.DEFINE_integer(
  "limit", 5000, "Images to look at, from all over the data; 0 for all."
)
_OUT = flags.DEFINE_string(
  "out", "samples.png", "The picture of training samples, which is replaced."
)
_DEBUG = flags.DEFINE_bool("debug", False, "Show where an error was raised.")


def _main(argv: list[str]) -> None:
  with command_line.one_line(argv, _DEBUG.value):
    config = config_lib.from_config_dict(_CONFIG.value)
    doctor.report(config, _LIMIT.value, os.path.expanduser(_OUT.value))


def _parse(argv: list[str]) -> list[str]:
  return command_line.parse(argv, _CONFIG)


if __name__ == "__main__":
  app.run(_main, flags_parser=_parse)
