"""Multi-head self-attention, optionally in chunks that bound its memory.

The logits [B, heads, N, N] are the only activations that grow with the square
of the number of tokens. In chunks they never exist all at once: the backward
pass recomputes them. On CPU, a chunk that fits in the cache is also faster. On
accelerators, chunks are for images of many patches.
"""

import functools

import jax
import jax.numpy as jnp

from mae_jax.distributed import sharding


def attend(
  qkv: jax.Array,
  heads: int,
  chunk_bytes: int = 0,
  attended: jax.Array | None = None,
) -> jax.Array:
  """Computes softmax(q k' / sqrt(d)) v, with the softmax in float32.

  Args:
    qkv: [B, N, 3D], for each token [q; k; v], each (heads, d).
    heads: number of heads, a divisor of D.
    chunk_bytes: upper bound on the logits in bytes per device; 0 for no bound.
      A chunk holds at least one query of one example.
    attended: bool [B, N], the tokens to attend to, at least one; None for all.
      It is computed without chunks.

  Returns:
    [B, N, D], each row (heads, d). Chunks change the result only by rounding.
  """
  batch, length, _ = qkv.shape
  if attended is not None:
    return _all_at_once(qkv, heads, attended)
  whole = functools.partial(_all_at_once, heads=heads)
  devices = sharding.num_devices()
  # A symbolic batch size of `jax.export` cannot be divided into chunks.
  if not chunk_bytes or not isinstance(batch, int) or batch % devices:
    return whole(qkv)
  query_bytes = 4 * heads * length  # logits of one query of one example
  local = batch // devices
  fitting = chunk_bytes // (query_bytes * length)
  if local <= fitting:
    return whole(qkv)
  if fitting:
    size = max(n for n in range(1, fitting + 1) if local % n == 0)
    chunk = jax.checkpoint(functools.partial(_chunk_of_examples, heads=heads))
  else:
    size, rows = 1, max(1, chunk_bytes // query_bytes)
    chunk = functools.partial(_chunks_of_queries, heads=heads, rows=rows)

  def in_chunks(qkv: jax.Array) -> jax.Array:
    out = jax.lax.map(chunk, qkv.reshape(-1, size, *qkv.shape[1:]))
    return out.reshape(-1, *out.shape[2:])

  return sharding.on_each_device(in_chunks)(qkv)


def weights(qkv: jax.Array, heads: int) -> jax.Array:
  """Returns the attention weights of [B, N, 3D]: [B, heads, N, N] float32."""
  q, k, _ = _split(qkv, heads)
  return jax.nn.softmax(_logits(q, k), axis=-1)


def _all_at_once(
  qkv: jax.Array, heads: int, attended: jax.Array | None = None
) -> jax.Array:
  q, k, v = _split(qkv, heads)
  logits = _logits(q, k)
  if attended is not None:
    logits = jnp.where(attended[:, None, None, :], logits, -jnp.inf)
  weights = jax.nn.softmax(logits, axis=-1)  # [B, heads, N, N]
  return _join(jnp.einsum("bhnm,bhmd->bhnd", weights.astype(v.dtype), v))


def _chunk_of_examples(qkv: jax.Array, heads: int) -> jax.Array:
  return _join(_attend_queries(*_split(qkv, heads)))


def _chunks_of_queries(qkv: jax.Array, heads: int, rows: int) -> jax.Array:
  """Attends with `rows` queries at a time, for all heads and examples."""
  q, k, v = _split(qkv, heads)
  batch, heads, length, head_dim = q.shape
  chunks = -(-length // rows)
  q = jnp.pad(q, ((0, 0), (0, 0), (0, chunks * rows - length), (0, 0)))
  q = jnp.moveaxis(q.reshape(batch, heads, chunks, rows, head_dim), 2, 0)
  out = jax.lax.map(
    jax.checkpoint(lambda chunk: _attend_queries(chunk, k, v)), q
  )
  out = jnp.moveaxis(out, 0, 2).reshape(batch, heads, chunks * rows, head_dim)
  return _join(out[:, :, :length])


def _attend_queries(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Attends from q [B, heads, n, d] to k and v [B, heads, N, d].

  The softmax divides the result by the row's sum, not the N weights. Its
  gradient is then a sum over d products instead of N, which is faster in a
  cache. Without chunks, compiled for TPUs, this costs 5 % more traffic.
  """
  logits = _logits(q, k)
  highest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
  weights = jnp.exp(logits - highest)  # [B, heads, n, N]
  out = jnp.einsum("bhnm,bhmd->bhnd", weights.astype(v.dtype), v)
  return (out / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)


def _logits(q: jax.Array, k: jax.Array) -> jax.Array:
  """Multiplies [B, heads, n, d] by [B, heads, N, d] to [B, heads, n, N]."""
  return jnp.einsum(
    "bhnd,bhmd->bhnm",
    q * q.shape[-1] ** -0.5,
    k,
    preferred_element_type=jnp.float32,
  )


def _split(qkv: jax.Array, heads: int) -> jax.Array:
  """Splits [B, N, 3D] into q, k, v, each [B, heads, N, d]."""
  qkv = qkv.reshape(*qkv.shape[:2], 3, heads, -1)
  return jnp.moveaxis(qkv, (2, 3), (0, 2))


def _join(out: jax.Array) -> jax.Array:
  """Joins the heads: [B, heads, N, d] -> [B, N, D]."""
  out = jnp.moveaxis(out, 1, 2)
  return out.reshape(*out.shape[:2], -1)
