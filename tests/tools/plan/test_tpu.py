"""Tests of ViT-B's train step, compiled by the TPU compiler."""

from __future__ import annotations

import functools
import importlib.util

import pytest

from mae_jax.config import Config, overrides
from mae_jax.distributed import sharding
from mae_jax.tools.plan import compile_step, planned_step, topology
from mae_jax.utils.errors import ConfigError
from tests.helpers import tiny

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="no TPU compiler here"
  ),
]

_BATCH = 256
# Compiles in seconds; ViT-B takes a minute or more.
_SMALL = {"image_size": (64, 64)}
_SOON = {"variant": "Ti/16", "width": 128, "heads": 2, "depth": 2}
_SOON |= {"decoder_width": 128, "decoder_heads": 2, "decoder_depth": 2}


def vit_b(**sections) -> Config:
  recipe = overrides.recipe("configs/vit_b.py")
  sections["data"] = {"batch_size": _BATCH} | sections.get("data", {})
  return tiny.with_changes(recipe, **sections)


def compiled(config: Config, slice_: str) -> compile_step.CompiledStep:
  where = topology.open_topology(slice_)
  return compile_step.measure(planned_step.on_slice(config, where), where.chip)


@functools.cache
def step(fsdp: int) -> compile_step.CompiledStep:
  """Compiles a step for sixteen chips with 16 images per chip."""
  return compiled(vit_b(mesh={"fsdp": fsdp}), "v5e:4x4")


def exchanged(found: compile_step.CompiledStep, *kinds: str) -> int:
  assert found.costs is not None
  return sum(
    each.times * each.bytes
    for each in found.costs.collectives
    if each.kind in kinds
  )


@pytest.mark.parametrize("fsdp", [1, 4])
def test_flops_and_memory(fsdp: int):
  found = step(fsdp)
  assert found.fits
  assert found.costs is not None
  assert found.costs.unknown_loops == 0
  # Only products of attention are recomputed.
  on_paper = found.planned.task.flops_per_image * _BATCH / 16
  assert 0.99 < found.costs.flops / on_paper < 1.03
  params = found.num_params * 4
  held = found.memory.params + found.memory.opt_state
  assert held == pytest.approx(3 * params / fsdp, rel=0.02)
  # In bfloat16 a token of a block keeps nine times its width, and a share for
  # what is under way; all of it once more would not pass.
  tokens = 16 * (50 * 768 * 12 + 197 * 512 * 8)
  assert found.memory.rest < 1.6 * (2 * 9 * tokens) + 4 * params / fsdp


def test_data_parallel_reduces_gradients_once():
  found = step(1)
  assert exchanged(found, "all-gather", "all-to-all", "collective-permute") == 0
  # In bfloat16, except for norms and the last layer.
  reduced = exchanged(found, "all-reduce", "reduce-scatter")
  assert reduced == pytest.approx(2 * found.num_params, rel=0.03)
  # Most of it overlaps with products of other gradients.
  assert found.costs is not None
  assert found.costs.overlapped > 0.5 * found.costs.sent


@pytest.mark.parametrize(
  ("slice_", "apart"),
  [("v3:4x4", False), ("v4:2x2x4", False), ("v5e:4x4", True)],
)
def test_gradients_are_summed_apart_if_memory_allows(slice_, apart: bool):
  """ViT-B with gradients summed apart does not compile for v4."""
  config = vit_b(
    model=_SOON | {"width": 768, "heads": 12, "mlp_dim": 768}, data=_SMALL
  )
  costs = compiled(config, slice_).costs
  assert costs is not None
  largest = max(x.bytes for x in costs.collectives if x.kind == "all-reduce")
  # In bfloat16: all kernels of a block, or the kernel of q, k and v.
  assert largest == 2 * 768**2 * (3 if apart else 3 + 1 + 1 + 1)


def test_little_traffic_is_padding():
  costs = step(1).costs
  assert costs is not None
  assert 0 < costs.padding < 0.1 * costs.hbm_bytes


def test_fsdp_gathers_parameters_and_nothing_else():
  found = step(4)
  # Once for the forward and once for the backward pass.
  gathered = exchanged(found, "all-gather")
  assert 2 * found.num_params < gathered < 4.1 * found.num_params
  assert exchanged(found, "all-to-all", "collective-permute") == 0
  assert found.costs is not None
  gathers = [c for c in found.costs.collectives if c.kind == "all-gather"]
  assert {each.group for each in gathers} == {4}
  # At most one kernel of one layer.
  assert max(each.bytes for each in gathers) == 768 * 3072 * 2


def test_without_the_constraint_activations_are_replicated(monkeypatch):
  """Shows that the test above fails without the sharding constraint."""
  config = vit_b(
    model=_SOON, data=_SMALL | {"batch_size": 1024}, mesh={"fsdp": 16}
  )
  found = compiled(config, "v5e:4x4")
  monkeypatch.setattr(sharding, "constrain_batch", lambda x: x)
  without = compiled(config, "v5e:4x4")
  wanted = without.memory.peak
  print(f"{found.memory.peak / 1e9:.2f} GB, without {wanted / 1e9:.2f} GB")
  assert wanted > 3 * found.memory.peak


def test_a_discriminator_and_a_contrast_gather_only_what_they_compare():
  config = vit_b(
    model=_SOON | {"decoder_depth": 1},
    data=_SMALL,
    objective={"contrast": "batch", "contrast_patches": 4},
    discriminator={"type": "patch", "width": 16, "depth": 3},
  )
  found = compiled(config, "v5e:4x4")
  assert found.fits
  # The originals are gathered in float32; predictions are not.
  originals = _BATCH * 4 * 768 * 4
  assert originals <= exchanged(found, "all-gather") <= 2 * originals
  assert exchanged(found, "all-to-all", "collective-permute") == 0
  # The discriminator's gradients of three losses are summed separately.
  reduced = exchanged(found, "all-reduce", "reduce-scatter")
  assert reduced < 1.3 * 2 * found.num_params


def test_programs_do_not_grow_with_depth():
  """Compile time then does not grow with depth."""

  def length(depth: int) -> int:
    config = vit_b(model={"depth": depth})
    where = topology.open_topology("v5e:2x2")
    planned = planned_step.on_slice(config, where)
    return len(compile_step.lower(planned).as_text())

  assert length(32) < 1.01 * length(4)


def test_too_little_memory_is_a_result():
  config = vit_b(model=_SOON, data=_SMALL | {"batch_size": 2**19})
  found = compiled(config, "v5e:2x2")
  assert not found.fits
  assert found.memory.peak > found.chip.hbm_bytes
  assert found.costs is None


def test_loops_and_unrolled_programs_have_equal_costs():
  """Costs of a loop, times its iterations, equal those of unrolled code."""
  rolled, unrolled = (
    compiled(
      vit_b(model={**_SOON, "remat": "none", "unroll": unroll}, data=_SMALL),
      "v5e:2x2",
    )
    for unroll in (1, 2)
  )
  assert rolled.costs is not None
  assert unrolled.costs is not None
  assert rolled.costs.flops == pytest.approx(unrolled.costs.flops, rel=0.01)
  assert rolled.costs.sent == pytest.approx(unrolled.costs.sent, rel=0.02)


def test_a_wrong_slice_is_refused():
  with pytest.raises(ConfigError, match="v5e:3x5 is not a slice"):
    topology.open_topology("v5e:3x5")
