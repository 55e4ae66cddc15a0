"""Compiles a planned step and measures the compiled program."""

import dataclasses
import math
import re
import time
from typing import Any

import jax

from mae_jax.tools.plan import hlo_costs as costs_lib
from mae_jax.tools.plan import planned_step as plan_program
from mae_jax.train import step as program_lib
from mae_jax.utils import console, errors, hardware
from mae_jax.utils.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of a chip's main memory.

  Attributes:
    params: the chip's part of the parameters.
    opt_state: the chip's part of the optimizer state.
    batch: the chip's part of a batch.
    peak: the largest use at any time, with the program itself. If the step does
      not fit, the compiler's estimate of what it needs, or 0.
  """

  params: int
  opt_state: int
  batch: int
  peak: int

  @property
  def rest(self) -> int:
    """Activations, gradients and copies at the peak."""
    return self.peak - self.params - self.opt_state - self.batch


@dataclasses.dataclass(frozen=True)
class CompiledStep:
  """A compiled train step.

  Attributes:
    planned: the step.
    chip: the kind of chip.
    num_params: number of parameters of the whole model.
    memory: memory of one chip.
    fits: whether the step fits into that memory.
    costs: costs of a step on a chip; None if the program cannot be printed.
    compile_seconds: compile time on this machine.
  """

  planned: plan_program.PlannedStep
  chip: hardware.Chip
  num_params: int
  memory: Memory
  fits: bool
  costs: costs_lib.Costs | None
  compile_seconds: float


# Triton's search for tiles and autotuning need a device.
_OPTIONS = {
  "gpu": {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}
}


def lower(planned: plan_program.PlannedStep, state: Any = None) -> Any:
  """Lowers the train step; returns a `jax.stages.Lowered`."""
  state = program_lib.abstract_state(planned.task) if state is None else state
  step = program_lib.jit_step(
    planned.task.train_step,
    planned.mesh,
    state,
    overlap=planned.config.mesh.overlap,
  )
  with jax.set_mesh(planned.mesh):
    return step.lower(state, planned.batch())


def measure(
  planned: plan_program.PlannedStep, chip: hardware.Chip
) -> CompiledStep:
  """Compiles the train step; running out of memory is a result, no error."""
  state = program_lib.abstract_state(planned.task)
  batch = planned.batch()
  params, opt_state = _share(state.params), _share(state.opt_state)
  held = params + opt_state + _share(batch)
  num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  begin = time.monotonic()
  costs = None
  try:
    options = _OPTIONS.get(planned.mesh.devices.flat[0].platform)
    compiled = lower(planned, state).compile(compiler_options=options)
    found = compiled.memory_analysis()
    peak = found.peak_memory_in_bytes + found.generated_code_size_in_bytes
    peak, fits = int(peak), True
    costs = _costs(compiled, planned.mesh.size)
  except jax.errors.JaxRuntimeError as error:
    if not errors.is_out_of_memory(error):
      raise
    peak, fits = _wanted(str(error), held), False
  if peak > chip.hbm_bytes:  # the CUDA compiler does not refuse
    fits = False
  return CompiledStep(
    planned,
    chip,
    num_params,
    Memory(params, opt_state, _share(batch), peak),
    fits,
    costs,
    time.monotonic() - begin,
  )


def _share(tree: Any) -> int:
  """Counts the bytes of a tree that one device holds."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def _costs(compiled: Any, devices: int) -> costs_lib.Costs | None:
  try:
    return costs_lib.count_costs(compiled.as_text(), devices)
  except jax.errors.JaxRuntimeError as error:  # seen on v5p
    console.warn(
      f"the compiled program cannot be read ({console.first_line(error)}): no "
      "flops, traffic or collectives"
    )
    return None


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"


def _wanted(text: str, held: int) -> int:
  """Reads the bytes that a step needs from the compiler's error, 0 if unknown.

  The chip holds `held` bytes before the step.
  """
  if found := re.search(rf"Used {_SIZE} of {_SIZE} (\w+)", text):
    if found[5] != "hbm":
      raise ConfigError(
        f"the compiler finds no room on the chip ({found[0]}), whatever main "
        "memory there is: try --config.mesh.overlap=False, another model.remat "
        "or fewer images a chip"
      )
    return int(float(found[1]) * _UNITS[found[2]])
  if found := re.search(rf"required for HLO temporaries \({_SIZE}\)", text):
    return held + int(float(found[1]) * _UNITS[found[2]])
  return 0
