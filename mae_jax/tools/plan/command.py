"""The command: `python -m mae_jax plan --config=FILE --topology=v5e:16x16`."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from absl import app, flags
from ml_collections import config_flags

from mae_jax.config import Config, MeshConfig, from_config_dict, overrides
from mae_jax.distributed import sharding
from mae_jax.tools.plan import (
  compile_step,
  format,
  planned_step,
  search,
  topology,
)
from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError

overrides.register_parsers()
_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The recipe, e.g. configs/vit_l.py.", lock_config=True
)
_TOPOLOGY = flags.DEFINE_string(
  "topology", None, "The slice to plan for, e.g. v5e:16x16 or h100:8."
)
_SEARCH = flags.DEFINE_bool(
  "search", False, "Try settings, and recommend the fastest that fits."
)
_BATCHES = flags.DEFINE_list(
  "batches", [], "Batch sizes that --search tries; the recipe's if empty."
)
_EXAMPLES = flags.DEFINE_integer(
  "num_examples",
  planned_step.IMAGENET,
  "Training images, which are not looked at.",
)
_CLASSES = flags.DEFINE_integer(
  "num_classes",
  planned_step.CLASSES,
  "Of a labeled task; the data are not looked at.",
)
_DEBUG = flags.DEFINE_bool("debug", False, "Show where an error was raised.")


def _search(
  config: Config,
  where: topology.Topology,
  compile_one: search.Measure,
) -> None:
  batches = [_number(text) for text in _BATCHES.value]
  mesh = sharding.make_mesh(MeshConfig(), where.devices)
  for batch in batches:  # before the first of them takes minutes
    sharding.check_batch(mesh, batch, "--batches")
  found = []
  console.info(
    f"{config.task} of {config.model.variant} on {where.name}, "
    f"{len(where.devices)} devices; a line for each setting compiled"
  )
  for each in search.search(config, len(where.devices), compile_one, batches):
    cells = format.row(each)
    console.info(
      "  ".join(
        f"{name} {cell}"
        for name, cell in zip(format.HEADINGS, cells, strict=True)
        if cell
      )
      + f"  ({each.compile_seconds:.0f} s)"
    )
    found.append(each)
  console.info("")
  console.info(
    format.table([format.row(each) for each in found], format.HEADINGS)
  )
  console.info("")
  chosen = search.best(found)
  if chosen is None:
    raise ConfigError(search.why_none(found, where.name))
  console.info(format.text(chosen, where))
  console.info("")
  console.info(f"The fastest that fits: {format.flags(chosen.planned.config)}")


def _number(text: str) -> int:
  if not text.strip().isdigit() or not int(text):
    raise ConfigError(
      f"--batches={','.join(_BATCHES.value)} are not batch sizes: write whole "
      "numbers with commas, as 2048,4096"
    )
  return int(text)


def _run() -> None:
  config = from_config_dict(_CONFIG.value)
  if not _TOPOLOGY.value:
    raise ConfigError(
      "--topology is missing: name a slice, such as v5e:16x16 or h100:8"
    )
  for flag in (_EXAMPLES, _CLASSES):
    if flag.value < 1:
      raise ConfigError(f"--{flag.name}={flag.value} is not above 0")
  if _BATCHES.value and not _SEARCH.value:
    raise ConfigError("--batches is for --search: add it")
  # A mistake in the settings is told before the compiler is looked for.
  try:
    where = topology.open_topology(_TOPOLOGY.value)
  except ConfigError as error:
    raise ConfigError(f"--topology={error}") from None

  def compile_one(config: Config) -> compile_step.CompiledStep:
    planned = planned_step.on_slice(
      config, where, _EXAMPLES.value, _CLASSES.value
    )
    return compile_step.measure(planned, where.chip)

  if _SEARCH.value:
    _search(config, where, compile_one)
  else:
    console.info(format.text(compile_one(config), where))


def _main(argv: list[str]) -> None:
  # The compilers are asked for by name; no device is looked for.
  jax.config.update("jax_platforms", "cpu")
  stopped = "stopped by Ctrl-C; what is told above is true"
  with overrides.one_line(argv, _DEBUG.value, stopped):
    _run()


def _parse(argv: list[str]) -> list[str]:
  return overrides.parse(argv, _CONFIG)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command."""
  app.run(
    _main,
    argv=["plan", *argv] if argv is not None else None,
    flags_parser=_parse,
  )
