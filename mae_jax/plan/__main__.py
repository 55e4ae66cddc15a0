"""The command: `python -m mae_jax.plan --config=FILE --topology=v5e:16x16`."""

from __future__ import annotations

import jax
from absl import app, flags
from ml_collections import config_flags

from mae_jax import command_line, console, sharding
from mae_jax import config as config_lib
from mae_jax.plan import measure, program, report, search, topology

command_line.register_parsers()
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
  "num_examples", program.IMAGENET, "Training images, which are not looked at."
)
_CLASSES = flags.DEFINE_integer(
  "num_classes",
  program.CLASSES,
  "Of a labelled task; the data are not looked at.",
)
_DEBUG = flags.DEFINE_bool("debug", False, "Show where an error was raised.")


def _search(
  config: config_lib.Config,
  where: topology.Topology,
  compile_one: search.Measure,
) -> None:
  batches = [_number(text) for text in _BATCHES.value]
  mesh = sharding.make_mesh(config_lib.Mesh(), where.devices)
  for batch in batches:  # before the first of them takes minutes
    sharding.check_batch(mesh, batch, "--batches")
  found = []
  console.say(
    f"{config.task} of {config.model.variant} on {where.name}, "
    f"{len(where.devices)} devices; a line for each setting compiled"
  )
  for each in search.search(config, len(where.devices), compile_one, batches):
    cells = report.row(each)
    console.say(
      "  ".join(
        f"{name} {cell}"
        for name, cell in zip(report.HEADINGS, cells, strict=True)
        if cell
      )
      + f"  ({each.compile_seconds:.0f} s)"
    )
    found.append(each)
  console.say("")
  console.say(
    report.table([report.row(each) for each in found], report.HEADINGS)
  )
  console.say("")
  chosen = search.best(found)
  if chosen is None:
    raise config_lib.ConfigError(search.why_none(found, where.name))
  console.say(report.text(chosen, where))
  console.say("")
  console.say(f"The fastest that fits: {report.flags(chosen.planned.config)}")


def _number(text: str) -> int:
  if not text.strip().isdigit() or not int(text):
    raise config_lib.ConfigError(
      f"--batches={','.join(_BATCHES.value)} are not batch sizes: write whole "
      "numbers with commas, as 2048,4096"
    )
  return int(text)


def _run() -> None:
  config = config_lib.from_config_dict(_CONFIG.value)
  if not _TOPOLOGY.value:
    raise config_lib.ConfigError(
      "--topology is missing: name a slice, such as v5e:16x16 or h100:8"
    )
  for flag in (_EXAMPLES, _CLASSES):
    if flag.value < 1:
      raise config_lib.ConfigError(f"--{flag.name}={flag.value} is not above 0")
  if _BATCHES.value and not _SEARCH.value:
    raise config_lib.ConfigError("--batches is for --search: add it")
  # A mistake in the settings is told before the compiler is looked for.
  try:
    where = topology.open_topology(_TOPOLOGY.value)
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f"--topology={error}") from None

  def compile_one(config: config_lib.Config) -> measure.Measured:
    planned = program.on_slice(config, where, _EXAMPLES.value, _CLASSES.value)
    return measure.measure(planned, where.chip)

  if _SEARCH.value:
    _search(config, where, compile_one)
  else:
    console.say(report.text(compile_one(config), where))


def _main(argv: list[str]) -> None:
  # The compilers are asked for by name; no device is looked for.
  jax.config.update("jax_platforms", "cpu")
  stopped = "stopped by Ctrl-C; what is told above is true"
  with command_line.one_line(argv, _DEBUG.value, stopped):
    _run()


def _parse(argv: list[str]) -> list[str]:
  return command_line.parse(argv, _CONFIG)


if __name__ == "__main__":
  app.run(_main, flags_parser=_parse)
