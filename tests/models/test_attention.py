"""Attention equals its definition, at once and in chunks, on any devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mae_jax.config import MeshConfig
from mae_jax.distributed import sharding
from mae_jax.models import attention

BATCH, LENGTH, HEADS, HEAD_DIM = 8, 13, 2, 4
ROW = 4 * HEADS * LENGTH  # bytes of one row of an example's logits
EXAMPLE = ROW * LENGTH
PARTS = {
  "whole": 0,
  "fits": BATCH * EXAMPLE,
  "some examples": 5 * EXAMPLE,  # four at a time: five do not divide eight
  "one example": EXAMPLE,
  "some rows": 5 * ROW,  # three parts, the last of three rows
  "one row": 1,
}


def sample(
  batch: int = BATCH, scale: float = 3
) -> tuple[np.ndarray, np.ndarray]:
  """Samples qkv, with logits of some tens, and the gradient of a loss."""
  random = np.random.default_rng(0)
  width = HEADS * HEAD_DIM
  qkv = scale * random.standard_normal((batch, LENGTH, 3 * width))
  return qkv, random.standard_normal((batch, LENGTH, width))


def torch_attention(
  qkv: np.ndarray, grad: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Computes attention and its gradient in float64."""
  x = torch.tensor(qkv, dtype=torch.float64, requires_grad=True)
  split = x.reshape(*qkv.shape[:2], 3, HEADS, HEAD_DIM)
  q, k, v = split.permute(2, 0, 3, 1, 4)
  out = torch.softmax(q @ k.mT * HEAD_DIM**-0.5, -1) @ v
  out = out.transpose(1, 2).reshape(grad.shape)
  out.backward(torch.tensor(grad))
  assert x.grad is not None
  return out.detach().numpy(), x.grad.numpy()


def chunked(qkv, grad, chunk_bytes: int):
  attend = functools.partial(
    attention.attend, heads=HEADS, chunk_bytes=chunk_bytes
  )
  out, pullback = jax.vjp(attend, qkv)
  return out, pullback(grad)[0]


@pytest.mark.parametrize("part", PARTS)
def test_equals_pytorch(part: str):
  qkv, grad = sample()
  got = jax.jit(functools.partial(chunked, chunk_bytes=PARTS[part]))(
    qkv.astype(np.float32), grad.astype(np.float32)
  )
  for mine, theirs in zip(got, torch_attention(qkv, grad), strict=True):
    np.testing.assert_allclose(
      mine, theirs, rtol=0, atol=2e-6 * np.abs(theirs).max()
    )


@pytest.mark.parametrize("part", PARTS)
def test_large_logits_do_not_overflow(part: str):
  qkv, grad = sample(scale=100)  # logits of some ten thousands
  out, got = chunked(
    qkv.astype(np.float32), grad.astype(np.float32), PARTS[part]
  )
  assert np.isfinite(out).all()
  assert np.isfinite(got).all()
  theirs, _ = torch_attention(qkv, grad)
  # One key wins each row, of whose value this is the rounding.
  np.testing.assert_allclose(out, theirs, rtol=0, atol=1e-3 * abs(theirs).max())


def test_bfloat16_sums_in_float32():
  # All weights are equal: each row's result is the mean of values.
  length = 1024
  qkv = np.zeros((1, length, 3, 1, 4), np.float32)
  values = np.random.default_rng(0).uniform(1, 2, (length, 4))
  qkv[0, :, 2, 0] = values
  rounded = jnp.asarray(qkv, jnp.bfloat16).reshape(1, length, 12)
  out = attention.attend(rounded, 1).astype(jnp.float32)
  np.testing.assert_allclose(out[0, 0], values.mean(axis=0), rtol=2**-8)


@pytest.mark.parametrize("part", ["some examples", "some rows"])
def test_on_eight_devices_each_goes_through_its_own(part: str):
  mesh = sharding.make_mesh(MeshConfig(fsdp=2))
  where = sharding.batch_sharding(mesh)
  qkv, grad = (x.astype(np.float32) for x in sample(8 * BATCH))
  function = jax.jit(
    functools.partial(chunked, chunk_bytes=PARTS[part]),
    in_shardings=(where, where),
    out_shardings=(where, where),
  )
  with jax.set_mesh(mesh):
    compiled = function.lower(qkv, grad).compile()
    got = function(qkv, grad)
  text = compiled.as_text()
  assert "while" in text
  assert "all-gather" not in text
  assert "all-to-all" not in text
  assert "collective-permute" not in text
  for mine, alone in zip(got, chunked(qkv, grad, 0), strict=True):
    np.testing.assert_allclose(
      mine, alone, rtol=0, atol=1e-6 * np.abs(alone).max()
    )


def test_a_batch_that_devices_do_not_divide_is_attended_whole():
  mesh = sharding.make_mesh(MeshConfig())
  qkv, grad = (x.astype(np.float32) for x in sample(1))
  with jax.set_mesh(mesh):
    out, _ = jax.jit(functools.partial(chunked, chunk_bytes=1))(qkv, grad)
  np.testing.assert_allclose(out, chunked(qkv, grad, 0)[0], atol=1e-5)


def test_memory_grows_with_the_tokens_and_not_their_square():
  def temporary(length: int, chunk_bytes: int) -> int:
    qkv = jax.ShapeDtypeStruct((2, length, 3 * 16), np.float32)
    grad = jax.ShapeDtypeStruct((2, length, 16), np.float32)
    lowered = jax.jit(
      functools.partial(chunked, chunk_bytes=chunk_bytes)
    ).lower(qkv, grad)
    return lowered.compile().memory_analysis().temp_size_in_bytes

  few, many = temporary(512, 2**16), temporary(2048, 2**16)
  assert many < 5 * few
  logits = 4 * 2 * HEADS * 2048**2
  assert many < logits / 8
  assert temporary(2048, 0) > logits
