"""Tests of flops, traffic and communication against counts by hand and XLA."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mae_jax.tools.plan import hlo_costs


def of(function, *args) -> hlo_costs.Costs:
  compiled = jax.jit(function).lower(*args).compile()
  return hlo_costs.count_costs(compiled.as_text(), jax.device_count())


def x(*shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize("unroll", [1, 7])
def test_products_in_loops_count_once_per_iteration(unroll: int):
  def stack(x, kernels):
    return jax.lax.scan(
      lambda x, k: (jnp.tanh(x @ k), None), x, kernels, unroll=unroll
    )[0]

  found = of(stack, x(8, 32), x(7, 32, 32))
  assert found.flops == 7 * 2 * 8 * 32 * 32
  assert found.unknown_loops == 0
  assert found.collectives == ()
  # Each iteration slices (reads and writes) one kernel and reads it, not all.
  kernels = 7 * 32 * 32 * 4
  assert kernels <= found.hbm_bytes < 5 * kernels


def test_batched_products():
  found = of(
    lambda a, b: jnp.einsum("bnhd,bmhd->bhnm", a, b),
    x(3, 5, 4, 6),
    x(3, 7, 4, 6),
  )
  assert found.flops == 2 * 3 * 4 * 5 * 7 * 6


def program(*lines: str) -> str:
  body = "\n".join(f"  {line}" for line in lines)
  return f"HloModule m\n\nENTRY %main (p: f32[]) -> f32[] {{\n{body}\n}}\n"


@pytest.mark.parametrize(
  ("line", "flops"),
  [
    # A dense layer, as the TPU compiler writes it: [196, 16, 768] x [768, 512].
    (
      "convolution(%a, %b), window={size=1}, dim_labels=0bf_io0->0bf",
      2 * 196 * 16 * 512 * 768,
    ),
    # Logits of 16 heads of 16 images: batches are dilated dimensions, of which
    # only the diagonal meets anything.
    (
      "convolution(%q, %k), window={size=16x16 stride=15x15 lhs_dilate=16x16}, "
      "dim_labels=0b1f_0o1i->01bf",
      2 * 16 * 16 * 197 * 197 * 32,
    ),
    # A plain one: 4 x 4 by 3 x 3 with padding of 1: 100 pairs meet.
    (
      "convolution(%i, %j), window={size=3x3 pad=1_1x1_1}, "
      "dim_labels=b01f_01io->b01f",
      2 * 2 * 6 * 5 * 100,
    ),
  ],
)
def test_convolutions(line: str, flops: int):
  shape = {
    "%a": "bf16[196,16,512]{2,1,0}",
    "%q": "f32[16,16,197,197]{3,2,1,0}",
    "%i": "f32[2,4,4,6]{3,2,1,0}",
  }[line.split("(")[1][:2]]
  text = program(
    "%a = bf16[196,16,768]{2,1,0} parameter(0)",
    "%b = bf16[768,512,1]{1,0,2} parameter(1)",
    "%q = bf16[16,197,16,32]{3,2,1,0} parameter(2)",
    "%k = bf16[16,197,16,32]{3,2,1,0} parameter(3)",
    "%i = f32[2,4,4,5]{3,2,1,0} parameter(4)",
    "%j = f32[3,3,5,6]{3,2,1,0} parameter(5)",
    f"ROOT %out = {shape} {line}",
  )
  assert hlo_costs.count_costs(text, 1).flops == flops


def test_products_of_cublas():
  text = program(
    "%a = bf16[4096,50,64]{2,1,0} parameter(0)",
    "%b = bf16[4096,64,50]{2,1,0} parameter(1)",
    "ROOT %out = (f32[4096,50,50]{2,1,0}, s8[33554432]{0}) custom-call(%a, %b),"
    ' custom_call_target="__cublas$lt$matmul", backend_config={'
    '"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions'
    '":["2"],"rhs_contracting_dimensions":["1"]}}}',
  )
  found = hlo_costs.count_costs(text, 1)
  assert found.flops == 2 * 4096 * 50 * 50 * 64
  # The workspace is not read or written completely.
  assert found.hbm_bytes == 4096 * 50 * 64 * 2 * 2 + 4096 * 50 * 50 * 4


def test_on_chip_memory_and_slices_are_not_traffic():
  text = """HloModule m

%nested (n: bf16[24,64,128], i: s32[]) -> bf16[1,64,128] {
  %n = bf16[24,64,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %slice = bf16[1,64,128]{2,1,0} dynamic-slice(%n, %i, %i, %i), \
dynamic_slice_sizes={1,64,128}
}

%fused (w: bf16[24,64,128], k: s32[], s: f32[24,8,128], u: f32[1,8,128]) -> \
(f32[24,8,128], bf16[1,64,128]) {
  %w = bf16[24,64,128]{2,1,0} parameter(0)
  %k = s32[] parameter(1)
  %s = f32[24,8,128]{2,1,0} parameter(2)
  %u = f32[1,8,128]{2,1,0} parameter(3)
  %inner = bf16[1,64,128]{2,1,0} fusion(%w, %k), kind=kLoop, calls=%nested
  %put = f32[24,8,128]{2,1,0} dynamic-update-slice(%s, %u, %k, %k, %k)
  ROOT %both = (f32[24,8,128]{2,1,0}, bf16[1,64,128]{2,1,0:S(1)}) \
tuple(%put, %inner)
}

ENTRY %main (w: bf16[24,64,128]) -> f32[24,8,128] {
  %w.1 = bf16[24,64,128]{2,1,0} parameter(0)
  %k.1 = s32[]{:S(6)} parameter(1)
  %s.1 = f32[24,8,128]{2,1,0} parameter(2)
  %u.1 = f32[1,8,128]{2,1,0:S(1)} parameter(3)
  %f = (f32[24,8,128]{2,1,0}, bf16[1,64,128]{2,1,0:S(1)}) fusion(%w.1, %k.1, \
%s.1, %u.1), kind=kLoop, calls=%fused
  %c = (bf16[64,128]{1,0:S(1)}, bf16[64,128]{1,0}, u32[]) copy-start(%h)
  %h = bf16[64,128]{1,0} parameter(4)
  ROOT %out = f32[24,8,128]{2,1,0} get-tuple-element(%f), index=0
}
"""
  slice_read, update_written, copied = 64 * 128 * 2, 8 * 128 * 4, 64 * 128 * 2
  found = hlo_costs.count_costs(text, 1)
  assert found.hbm_bytes == slice_read + update_written + copied


MESH_SHAPES = [(8, 1), (2, 4)]


@pytest.mark.parametrize("shape", MESH_SHAPES)
def test_exchanges_of_a_program(shape: tuple[int, int]):
  """Counts a loop that gathers a kernel and sums the result each iteration."""
  devices = np.array(jax.devices()).reshape(shape)
  mesh = Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
  turns, width = 3, 64

  def step(x, kernels):
    def turn(x, kernel):
      kernel = jax.lax.with_sharding_constraint(
        kernel, NamedSharding(mesh, PartitionSpec())
      )
      return jnp.tanh(x @ kernel), None

    return jax.lax.scan(turn, x, kernels)[0].sum()

  split = functools.partial(NamedSharding, mesh)
  compiled = (
    jax.jit(
      step,
      in_shardings=(
        split(PartitionSpec(("data", "fsdp"))),
        split(PartitionSpec(None, "fsdp")),
      ),
    )
    .lower(x(16, width), x(turns, width, width))
    .compile()
  )
  found = hlo_costs.count_costs(compiled.as_text(), 8).collectives
  kinds = {each.kind: each for each in found}
  total = kinds.pop("all-reduce")
  assert (total.times, total.bytes, total.group) == (1, 4, 8)
  assert total.sent == 2 * 7 / 8 * 4
  if shape[1] == 1:
    assert not kinds
    return
  gather = kinds.pop("all-gather")
  assert not kinds
  assert (gather.times, gather.group, gather.span) == (turns, 4, 4)
  assert gather.bytes == width * width * 4
  assert gather.sent == 3 / 4 * width * width * 4


@pytest.mark.parametrize(
  ("groups", "size", "span"),
  [
    ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4, 4),
    ("replica_groups={{0,8},{1,9}}", 2, 9),
    ("replica_groups=[2,8]<=[16]", 8, 8),
    ("replica_groups=[8,2]<=[2,8]T(1,0)", 2, 9),
    (
      "replica_groups=mesh['axis_0'=1,'axis_1'=4,'axis_2'=4], "
      "device_ids=([4,4]T(1,0)) {'axis_1'}",
      4,
      4,
    ),
    (
      "replica_groups=mesh['axis_0'=1,'axis_1'=4,'axis_2'=4], "
      "device_ids=([4,4]T(1,0)) {'axis_2'}",
      4,
      13,
    ),
    ("replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_0','axis_1'}", 16, 16),
    ("replica_groups=mesh['data'=2,'fsdp'=8] {'fsdp'}", 8, 8),
    ("replica_groups={}", 16, 16),
  ],
)
def test_groups(groups: str, size: int, span: int):
  text = program(
    "%p = f32[4]{0} parameter(0)",
    f"ROOT %r = f32[4]{{0}} all-reduce(%p), channel_id=1, {groups}, "
    "to_apply=%add",
  )
  (found,) = hlo_costs.count_costs(text, 16).collectives
  assert (found.group, found.span) == (size, span)


def test_an_exchange_in_parts_counts_once():
  """The TPU compiler overlaps one with several fusions of equal channel."""
  part = """%fused.{n} (p.{n}: bf16[1,16]) -> bf16[4,16] {{
  %p.{n} = bf16[1,16]{{1,0}} parameter(0)
  ROOT %g.{n} = bf16[4,16]{{1,0}} all-gather(%p.{n}), channel_id=7, \
replica_groups={{{{0,1,2,3}}}}, dimensions={{0}}
}}
"""
  text = "HloModule m\n\n" + "".join(part.format(n=n) for n in (0, 1))
  text += """
ENTRY %main (p: bf16[1,16]) -> bf16[4,16] {
  %p = bf16[1,16]{1,0} parameter(0)
  %a = bf16[4,16]{1,0} fusion(%p), kind=kCustom, calls=%fused.0
  ROOT %b = bf16[4,16]{1,0} fusion(%p), kind=kCustom, calls=%fused.1
}
"""
  found = hlo_costs.count_costs(text, 4)
  assert found.by_kind() == {"all-gather": (1, 3 / 4 * 4 * 16 * 2)}
  assert found.sent == 96


def test_exchanges_of_one_channel_count_each():
  """Communication of two blocks from one loop shares a channel."""
  reduced = (
    "all-reduce(%p), channel_id=8, replica_groups={{0,1,2,3}}, to_apply=%add"
  )
  found = hlo_costs.count_costs(
    program(
      "%p = f32[4]{0} parameter(0)",
      f"%a = f32[4]{{0}} {reduced}",
      f"ROOT %b = f32[4]{{0}} {reduced}",
    ),
    4,
  )
  assert found.by_kind() == {"all-reduce": (2, 2 * 2 * 3 / 4 * 4 * 4)}


def test_exchanges_in_parts_are_matched_by_their_chains():
  """They share one channel."""
  part = """%fused.{n} (p.{n}: f32[4]) -> f32[4] {{
  %p.{n} = f32[4]{{0}} parameter(0)
  ROOT %r.{n} = f32[4]{{0}} all-reduce(%p.{n}), channel_id=8, \
replica_groups={{{{0,1,2,3}}}}, to_apply=%add, \
frontend_attributes={{chain_id="{chain}"}}
}}
"""
  text = "HloModule m\n\n"
  text += "".join(part.format(n=n, chain=n // 2) for n in range(4))
  text += "ENTRY %main (p: f32[4]) -> f32[4] {\n  %p = f32[4]{0} parameter(0)\n"
  for n in range(4):
    root = "ROOT " if n == 3 else ""
    text += (
      f"  {root}%f.{n} = f32[4]{{0}} fusion(%p), kind=kCustom, "
      f"calls=%fused.{n}\n"
    )
  found = hlo_costs.count_costs(text + "}\n", 4)
  assert found.by_kind() == {"all-reduce": (2, 2 * 2 * 3 / 4 * 4 * 4)}
