"""Random streams as a function of (seed, stream name, step).

No random state is saved, and no key goes from one step to the next. So a
resumed run, or a run on other devices, samples the same numbers.
"""

import zlib

import jax


def stream_id(name: str) -> int:
  """Hashes a stream's name to a non-negative 31-bit number."""
  return zlib.crc32(name.encode()) & 0x7FFFFFFF


def key(
  seed: jax.Array | int, name: str, step: jax.Array | int = 0
) -> jax.Array:
  """Makes the key for a step of a named stream; seed and step may be traced."""
  stream = jax.random.fold_in(jax.random.key(seed), stream_id(name))
  return jax.random.fold_in(stream, step)
