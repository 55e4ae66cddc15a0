"""Random streams as a function of (seed, stream name, step).

Nothing random is saved or split off anything else, so that a resumed run, or
one on other devices, draws what the first one drew.
"""

from __future__ import annotations

import zlib

import jax


def stream_id(name: str) -> int:
  """A fixed non-negative 31-bit number for a stream's name."""
  return zlib.crc32(name.encode()) & 0x7FFFFFFF


def key(
  seed: jax.Array | int, name: str, step: jax.Array | int = 0
) -> jax.Array:
  """The key of one step of one named stream; numbers may be traced."""
  stream = jax.random.fold_in(jax.random.key(seed), stream_id(name))
  return jax.random.fold_in(stream, step)
