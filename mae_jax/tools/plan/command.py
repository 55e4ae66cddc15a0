"""The command: `python -m mae_jax plan --config=FILE --topology=v5e:16x16`."""

from collections.abc import Sequence

from mae_jax.config import Config, MeshConfig
from mae_jax.distributed import sharding
from mae_jax.tools import cli
from mae_jax.tools.plan import compile_step, format, planned_step
from mae_jax.tools.plan import search as search_lib
from mae_jax.tools.plan import topology as topology_lib
from mae_jax.utils import console, signals, tables
from mae_jax.utils.errors import ConfigError


def _search(
  config: Config,
  where: topology_lib.Topology,
  compile_one: search_lib.Measure,
  batches: Sequence[int],
  input_rate: float,
) -> None:
  mesh = sharding.make_mesh(MeshConfig(), where.devices)
  for batch in batches:  # before the first of them takes minutes
    sharding.check_batch(mesh, batch, "--batches")
  found: list[compile_step.CompiledStep] = []
  rows: list[list[str]] = []
  complete = False
  console.info(
    f"{config.task} of {config.model.variant} on {where.name}, "
    f"{len(where.devices)} devices; a line for each setting compiled"
  )

  def recommend() -> None:
    """Prints what was found, also if the search is interrupted."""
    if not rows:
      return
    console.info(f"\n{tables.markdown(rows, format.HEADINGS)}\n")
    if (chosen := search_lib.best(found)) is not None:
      console.info(f"{format.text(chosen, where, input_rate)}\n")
      so_far = "" if complete else " so far"
      flags = format.flags(chosen.planned.config)
      console.info(f"The fastest that fits{so_far}: {flags}")

  with signals.cleanup(recommend):
    for each in search_lib.search(
      config, len(where.devices), compile_one, batches
    ):
      found.append(each)
      rows.append(format.row(each))
      pairs = zip(format.HEADINGS, rows[-1], strict=True)
      cells = "  ".join(f"{name} {cell}" for name, cell in pairs if cell)
      console.info(f"{cells}  ({each.compile_seconds:.0f} s)")
    complete = True
  if search_lib.best(found) is None:
    raise ConfigError(search_lib.why_none(found, where.name))


def plan(
  config: Config,
  *,
  topology: str,
  search: bool = False,
  batches: cli.Words = (),
  num_examples: int = planned_step.IMAGENET,
  num_classes: int = planned_step.CLASSES,
  input_rate: float = 0,
) -> None:
  """Compiles a config's train step for TPUs or GPUs that need not be here.

  Prints memory, flops and traffic on each chip, a lower bound of the step time,
  the images that each host must read, and whether the step fits. The data are
  not opened.

  Args:
    config: the recipe, for instance vit_l.
    topology: the slice or GPUs, for instance v5e:16x16 or h100:8.
    search: try settings, and recommend the fastest that fits. Ctrl-C ends the
      search with the fastest so far.
    batches: batch sizes that --search tries, as 2048,4096; by default the
      recipe's.
    num_examples: the number of training images.
    num_classes: the number of classes of a labeled task.
    input_rate: images a second that a host can read, as inspect measures there;
      says whether that is enough.

  Raises:
    ConfigError: if there is no such slice, or a setting cannot work.
  """
  cli.at_least("num_examples", num_examples)
  cli.at_least("num_classes", num_classes)
  cli.at_least("input_rate", input_rate, 0)
  if batches and not search:
    raise ConfigError("--batches is for --search: add it")
  if not all(text.strip().isdigit() and int(text) for text in batches):
    raise ConfigError(
      f"--batches={','.join(batches)} are not batch sizes: write whole numbers "
      "with commas, as 2048,4096"
    )
  sizes = [int(text) for text in batches]
  # A mistake in the settings is reported before the compiler is loaded.
  try:
    where = topology_lib.open_topology(topology)
  except ConfigError as error:
    raise ConfigError(f"--topology={error}") from None

  def compile_one(config: Config) -> compile_step.CompiledStep:
    planned = planned_step.on_slice(config, where, num_examples, num_classes)
    return compile_step.measure(planned, where.chip)

  if search:
    _search(config, where, compile_one, sizes, input_rate)
  else:
    console.info(format.text(compile_one(config), where, input_rate))
