"""Formats plans for people."""

from mae_jax.config import Config
from mae_jax.tools.plan import compile_step, topology
from mae_jax.tools.plan import roofline as estimate_lib


def text(
  measured: compile_step.CompiledStep,
  where: topology.Topology,
  input_rate: float = 0,
) -> str:
  """Formats everything about a compiled step.

  Args:
    measured: the step.
    where: the devices.
    input_rate: images a second that a host can read; 0 if that is not known.
  """
  planned = measured.planned
  config, mesh = planned.config, planned.mesh
  parts = zip(planned.tokens, ("encoder", "decoder"), strict=False)
  tokens = ", ".join(f"{number} in the {part}" for number, part in parts)
  lines = [
    f"{config.task} of {config.model.variant} on {where.name}: {mesh.size} x "
    f"{mesh.devices.flat[0].device_kind}",
    f"{settings(config)}, {config.data.batch_size // mesh.size} images a chip",
    "",
    _row("parameters", f"{measured.num_params / 1e6:.1f} M"),
    _row("tokens an image", tokens),
    _row("flops an image", _flops(measured)),
    _row("HBM a chip", _verdict(measured)),
    *_memory(measured.memory),
  ]
  if measured.costs is not None:
    traffic = measured.costs.hbm_bytes
    padding = f"{measured.costs.padding / traffic:.0%} of it padding"
    lines.append(_row("HBM traffic a step", f"{gb(traffic)} a chip, {padding}"))
    kinds = measured.costs.by_kind()
    for kind, (times, sent) in sorted(kinds.items()):
      lines.append(_row(kind, f"{times:g} a step, {gb(sent)} sent by a chip"))
    if kinds:
      share = measured.costs.overlapped / (measured.costs.sent or 1)
      lines.append(
        _row("sent meanwhile", f"{share:.0%} of that, while it computes")
      )
    else:
      lines.append(_row("collectives", "none"))
    if measured.costs.unknown_loops:
      lines.append(
        f"{measured.costs.unknown_loops} loops do not tell how often they "
        "turn: they are counted once"
      )
  lines.append(_row("compiled in", f"{measured.compile_seconds:.0f} s here"))
  found = estimate_lib.estimate(measured)
  if found and measured.fits:
    lines += ["", *_estimate(found, planned.task.total_steps, config)]
    lines.append(_input(found.images_per_second, where, input_rate))
  return "\n".join(lines)


def settings(config: Config) -> str:
  """Lists the settings that decide speed and memory."""
  return (
    f"batch {config.data.batch_size}, fsdp {config.mesh.fsdp}, remat "
    f"{config.model.remat}, accumulation {config.optim.accum_steps}, "
    f"{config.model.dtype}"
  )


def flags(config: Config) -> str:
  """Formats these settings as flags of `train` and `plan`."""
  return (
    f"--config.data.batch_size={config.data.batch_size} "
    f"--config.mesh.fsdp={config.mesh.fsdp} "
    f"--config.model.remat={config.model.remat} "
    f"--config.optim.accum_steps={config.optim.accum_steps}"
  )


HEADINGS = (
  "batch", "a chip", "fsdp", "remat", "accum", "HBM peak", "step, at least",
  "bound by", "images/s, at most",
)  # fmt: skip


def row(measured: compile_step.CompiledStep) -> list[str]:
  """Returns the cells of one compiled step under HEADINGS."""
  config = measured.planned.config
  found = estimate_lib.estimate(measured) if measured.fits else None
  share = config.data.batch_size // measured.planned.mesh.size
  peak = gb(measured.memory.peak) if measured.memory.peak else "?"
  return [
    str(config.data.batch_size),
    str(share // config.optim.accum_steps),
    str(config.mesh.fsdp),
    config.model.remat,
    str(config.optim.accum_steps),
    peak if measured.fits else f"{peak}: too much",
    f"{1e3 * found.step:.1f} ms" if found else "",
    found.bound if found else "",
    f"{found.images_per_second:,.0f}" if found else "",
  ]


def _row(name: str, value: str) -> str:
  return f"{name:<20}{value}"


def gb(count: float) -> str:
  """Formats bytes as GB."""
  return f"{count / 1e9:.2f} GB"


def _flops(measured: compile_step.CompiledStep) -> str:
  analytic = measured.planned.task.flops_per_image
  result = f"{analytic:.3e} on paper"
  if measured.costs is None:
    return result
  planned = measured.planned
  images = planned.config.data.batch_size / planned.mesh.size
  compiled = measured.costs.flops / images
  change = compiled / analytic - 1
  return f"{result}, {compiled:.3e} compiled ({change:+.1%})"


def _verdict(measured: compile_step.CompiledStep) -> str:
  peak, capacity = measured.memory.peak, measured.chip.hbm_bytes
  if measured.fits:
    share = peak / capacity
    return f"{gb(peak)} at the peak, {share:.0%} of {gb(capacity)}: fits"
  wanted = f"wants {gb(peak)}" if peak else "wants more"
  return (
    f"{wanted}, has {gb(capacity)}: DOES NOT FIT. In this order: a larger "
    "mesh.fsdp, model.remat=full, a larger optim.accum_steps; --search tries"
  )


def _memory(memory: compile_step.Memory) -> list[str]:
  parts = [
    ("parameters", memory.params),
    ("optimizer", memory.opt_state),
    ("batch", memory.batch),
  ]
  if memory.peak:
    parts.append(("activations, gradients, copies", memory.rest))
  return [f"  {name:<31} {gb(size):>9}" for name, size in parts]


def _estimate(
  found: estimate_lib.Estimate, total_steps: int, config: Config
) -> list[str]:
  return [
    "Estimate, a roofline: no step can be faster than the slowest of",
    f"  compute {1e3 * found.compute:.1f} ms, HBM {1e3 * found.memory:.1f} ms, "
    f"interconnect {1e3 * found.interconnect:.1f} ms",
    f"a step >= {1e3 * found.step:.1f} ms (bound by {found.bound}): at most "
    f"{found.images_per_second:,.0f} images/s, {found.mfu:.0%} MFU; "
    f"{config.train.length} ({total_steps:,} steps) >= {_time(found.days)}",
  ]


def _input(rate: float, where: topology.Topology, given: float) -> str:
  """Describes the images that hosts must read, beside what they can."""
  hosts = len({device.process_index for device in where.devices})
  line = f"to keep up, {_count(hosts, 'host')} must read {rate / hosts:,.0f} "
  line += "images/s" + " each" * (hosts > 1)
  if not given:
    return f"{line}; inspect measures what a host can, for --input_rate"
  share = given * hosts / rate
  if share >= 1:
    return f"{line}, and can read {given:,.0f}"
  return (
    f"{line}, but can read {given:,.0f}: the input limits the run to "
    f"{given * hosts:,.0f} images/s, {share:.0%} of that"
  )


def _count(number: int, name: str) -> str:
  return f"{number} {name}" + "s" * (number > 1)


def _time(days: float) -> str:
  return f"{days:.1f} days" if days >= 1 else f"{24 * days:.1f} hours"
