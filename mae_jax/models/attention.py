"""Multi-head self-attention, whole or in parts that bound its logits.

The logits, [B, heads, N, N], are the one thing of a transformer that grows with
the square of the tokens. Part by part they never exist at once: the backward
pass computes them again. On CPU a part that stays in the cache is also faster
than logits that go to memory and back, twice; on accelerators parts are for
images of many patches.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from mae_jax.distributed import sharding


def attend(qkv: jax.Array, heads: int, part_bytes: int = 0) -> jax.Array:
  """softmax(q k' / sqrt(d)) v, the softmax in float32.

  Args:
    qkv: [B, N, 3D], of each token [q; k; v], each (heads, d).
    heads: a divisor of D.
    part_bytes: the most that logits take of a device at a time; 0 for no
      bound. One row of an example's logits is the least.

  Returns:
    [B, N, D], each row (heads, d). Parts change it by rounding.
  """
  batch, length, _ = qkv.shape
  whole = functools.partial(_all_at_once, heads=heads)
  devices = sharding.num_devices()
  if not part_bytes or batch % devices:
    return whole(qkv)
  row_bytes = 4 * heads * length  # of one example
  local = batch // devices
  fitting = part_bytes // (row_bytes * length)
  if local <= fitting:
    return whole(qkv)
  if fitting:
    size = max(n for n in range(1, fitting + 1) if local % n == 0)
    part = jax.checkpoint(functools.partial(_chunk_of_examples, heads=heads))
  else:
    size, rows = 1, max(1, part_bytes // row_bytes)
    part = functools.partial(_chunks_of_queries, heads=heads, rows=rows)

  def in_parts(qkv: jax.Array) -> jax.Array:
    out = jax.lax.map(part, qkv.reshape(-1, size, *qkv.shape[1:]))
    return out.reshape(-1, *out.shape[2:])

  return sharding.on_each_device(in_parts)(qkv)


def weights(qkv: jax.Array, heads: int) -> jax.Array:
  """What each token takes of each: [B, N, 3D] -> [B, heads, N, N] float32."""
  q, k, _ = _split(qkv, heads)
  return jax.nn.softmax(_logits(q, k), axis=-1)


def _all_at_once(qkv: jax.Array, heads: int) -> jax.Array:
  q, k, v = _split(qkv, heads)
  weights = jax.nn.softmax(_logits(q, k), axis=-1)  # [B, heads, N, N]
  return _join(jnp.einsum("bhnm,bhmd->bhnd", weights.astype(v.dtype), v))


def _chunk_of_examples(qkv: jax.Array, heads: int) -> jax.Array:
  return _join(_attend_queries(*_split(qkv, heads)))


def _chunks_of_queries(qkv: jax.Array, heads: int, rows: int) -> jax.Array:
  """So many queries at a time, of all heads and examples."""
  q, k, v = _split(qkv, heads)
  batch, heads, length, head_dim = q.shape
  parts = -(-length // rows)
  q = jnp.pad(q, ((0, 0), (0, 0), (0, parts * rows - length), (0, 0)))
  q = jnp.moveaxis(q.reshape(batch, heads, parts, rows, head_dim), 2, 0)
  out = jax.lax.map(jax.checkpoint(lambda some: _attend_queries(some, k, v)), q)
  out = jnp.moveaxis(out, 0, 2).reshape(batch, heads, parts * rows, head_dim)
  return _join(out[:, :, :length])


def _attend_queries(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """[B, heads, n, d] and twice [B, heads, N, d] -> [B, heads, n, d].

  What is divided by the sum of a row is the row's result, not its N weights,
  which makes its gradient a sum over d products and not over N. That is faster
  in a cache; compiled for TPUs, whole, it is 5 % more traffic.
  """
  logits = _logits(q, k)
  highest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
  weights = jnp.exp(logits - highest)  # [B, heads, n, N]
  out = jnp.einsum("bhnm,bhmd->bhnd", weights.astype(v.dtype), v)
  return (out / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)


def _logits(q: jax.Array, k: jax.Array) -> jax.Array:
  """[B, heads, n, d] and [B, heads, N, d] -> [B, heads, n, N] float32."""
  return jnp.einsum(
    "bhnd,bhmd->bhnm",
    q * q.shape[-1] ** -0.5,
    k,
    preferred_element_type=jnp.float32,
  )


def _split(qkv: jax.Array, heads: int) -> jax.Array:
  """[B, N, 3D] -> q, k, v, each [B, heads, N, d]."""
  qkv = qkv.reshape(*qkv.shape[:2], 3, heads, -1)
  return jnp.moveaxis(qkv, (2, 3), (0, 2))


def _join(out: jax.Array) -> jax.Array:
  """[B, heads, N, d] -> [B, N, D]."""
  out = jnp.moveaxis(out, 1, 2)
  return out.reshape(*out.shape[:2], -1)
