"""Tests of memory and communication of train steps on eight devices."""

from __future__ import annotations

import functools
import math

import jax
import pytest

from mae_jax.tools.plan import compile_step
from mae_jax.train import step as program_lib
from tests.helpers import compiled_steps

MESHES = {"data": 1, "both": 4, "fsdp": 8}


@functools.cache
def step(fsdp: int, accum_steps: int = 1) -> compile_step.CompiledStep:
  return compiled_steps.compile_settings(
    compiled_steps.config(
      mesh={"fsdp": fsdp}, optim={"accum_steps": accum_steps}
    )
  )


def params_bytes(
  found: compile_step.CompiledStep, split: bool | None = None
) -> int:
  """Returns bytes of all parameters, or of sharded or replicated ones."""
  state = program_lib.abstract_state(found.planned.task)
  return sum(
    math.prod(leaf.shape) * 4
    for leaf in jax.tree.leaves(state.params)
    if split is None or split == ("fsdp" in leaf.sharding.spec)
  )


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", MESHES.values(), ids=MESHES)
def test_parameters_and_optimizer_state_are_sharded(fsdp: int):
  found = step(fsdp)
  split, whole = params_bytes(found, True), params_bytes(found, False)
  held = split // fsdp + whole if fsdp > 1 else split + whole
  memory = found.memory
  assert memory.params == held
  assert 2 * held <= memory.opt_state < 2 * held + 64  # plus a counter
  # The sizes of the arguments according to the program.
  with jax.set_mesh(found.planned.mesh):
    state = program_lib.abstract_state(found.planned.task)
    compiled = (
      program_lib.jit_step(
        found.planned.task.train_step, found.planned.mesh, state
      )
      .lower(state, found.planned.batch())
      .compile()
    )
  given = compiled.memory_analysis().argument_size_in_bytes
  parts = memory.params + memory.opt_state + memory.batch
  # Pre-training does not use labels; a step also has counters.
  assert abs(given - parts) < 256
  # The memory of the old state is reused.
  alias = compiled.memory_analysis().alias_size_in_bytes
  assert alias >= memory.params + memory.opt_state


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", MESHES.values(), ids=MESHES)
def test_only_parameters_are_gathered(fsdp: int):
  """They are gathered per layer in the forward and the backward pass."""
  found = step(fsdp)
  assert found.costs is not None
  gathers = [c for c in found.costs.collectives if c.kind == "all-gather"]
  if fsdp == 1:
    assert not gathers
    return
  for each in gathers:
    assert each.group == fsdp, each
  split = params_bytes(found, True)
  total = sum(each.times * each.bytes for each in gathers)
  assert split <= total <= 2 * split
  # At most the largest kernel of one layer is gathered at a time.
  assert max(each.bytes for each in gathers) <= 64 * 3 * 64 * 4
  kinds = {each.kind for each in found.costs.collectives}
  assert kinds <= {"all-gather", "all-reduce", "reduce-scatter"}


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", MESHES.values(), ids=MESHES)
def test_gradients_are_reduced_once(fsdp: int):
  found = step(fsdp)
  assert found.costs is not None
  reduced = sum(
    each.times * each.bytes
    for each in found.costs.collectives
    if each.kind in ("all-reduce", "reduce-scatter")
  )
  split, whole = params_bytes(found, True), params_bytes(found, False)
  # Over fsdp whole gradients are reduced, over data the remaining shard.
  both = 1 < fsdp < 8
  wanted = split + whole + (split // fsdp if both else 0)
  # Loss, norms and counters are scalars.
  assert wanted <= reduced < 1.02 * wanted + 512


@pytest.mark.slow
def test_accumulation_reduces_micro_batches():
  """Gradients of each micro-batch are reduced; flops are divided."""
  once, twice = step(1), step(1, accum_steps=2)
  assert once.costs is not None
  assert twice.costs is not None
  assert twice.costs.flops == once.costs.flops
  assert twice.costs.sent == pytest.approx(2 * once.costs.sent, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", MESHES.values(), ids=MESHES)
def test_flops_equal_the_counted_flops(fsdp: int):
  found = step(fsdp)
  assert found.costs is not None
  on_paper = found.planned.task.flops_per_image * 64 / 8
  assert found.costs.flops == pytest.approx(on_paper, rel=0.03)
  assert found.costs.unknown_loops == 0


@pytest.mark.slow
def test_flops_do_not_depend_on_unrolling():
  rolled, unrolled = (
    compiled_steps.compile_settings(
      compiled_steps.config(model={"depth": 3, "unroll": unroll})
    )
    for unroll in (1, 3)
  )
  assert rolled.costs is not None
  assert unrolled.costs is not None
  assert rolled.costs.flops == unrolled.costs.flops
