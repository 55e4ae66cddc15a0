"""Tests that random streams depend only on seed, name and step."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.config import MeshConfig
from mae_jax.distributed import sharding
from mae_jax.utils import rng


def crc32(data: bytes) -> int:
  """Computes the CRC-32 of IEEE 802.3, bit by bit."""
  value = 0xFFFFFFFF
  for byte in data:
    value ^= byte
    for _ in range(8):
      value = (value >> 1) ^ (0xEDB88320 if value & 1 else 0)
  return value ^ 0xFFFFFFFF


@pytest.mark.parametrize("name", ["", "mask", "init", "eval_mask", "data"])
def test_a_stream_has_the_same_number_in_every_process(name: str):
  assert rng.stream_id(name) == crc32(name.encode()) & 0x7FFFFFFF


def test_all_streams_differ():
  combinations = list(itertools.product((0, 1), ("mask", "init"), (0, 1, 99)))
  draws = {float(jax.random.uniform(rng.key(*c))) for c in combinations}
  assert len(draws) == len(combinations)
  again = {float(jax.random.uniform(rng.key(*c))) for c in combinations}
  assert again == draws


def test_step_may_be_traced():
  def draw(step):
    return jax.random.uniform(rng.key(3, "mask", step), (5,))

  traced = jax.jit(draw)(jnp.int32(7))
  np.testing.assert_array_equal(traced, draw(7))
  default = jax.random.uniform(rng.key(3, "mask"), (5,))
  np.testing.assert_array_equal(default, draw(0))


@pytest.mark.parametrize(("count", "fsdp"), [(1, 1), (2, 2), (8, 1), (8, 4)])
def test_masks_are_bit_equal_on_any_mesh(count: int, fsdp: int):
  mesh = sharding.make_mesh(MeshConfig(fsdp=fsdp), jax.devices()[:count])

  def draw(step):
    return jax.random.uniform(rng.key(0, "mask", step), (16, 9))

  out = jax.jit(draw, out_shardings=sharding.batch_sharding(mesh))(5)
  assert len(out.addressable_shards) == count
  np.testing.assert_array_equal(out, draw(5))
