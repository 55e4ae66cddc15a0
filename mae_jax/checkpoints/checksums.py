"""Checksums of arrays and of JSON, which detect a damaged checkpoint."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def checksum(tree: Any) -> int:
  """Computes a 32-bit checksum of a tree of arrays, for any sharding the same.

  Each array's words are summed with odd weights modulo 2^32. Flipping any bit
  changes the sum. The order of addition does not matter, so every device sums
  its own part.
  """
  sums = {
    name: array_checksum(leaf) if _is_small(leaf) else _device_sum(leaf)
    for name, leaf in flatten(tree).items()
  }
  return combine(jax.device_get(sums))


def array_checksum(array: Any) -> int:
  """Computes one array's sum in chunks, so that it needs little memory."""
  result = 0
  flat_array = np.ascontiguousarray(array).reshape(-1)
  for start in range(0, max(flat_array.size, 1), _CHUNK):
    part = flat_array[start : start + _CHUNK]
    words = part.view(_UNSIGNED[part.dtype.itemsize]).astype(np.uint32)
    index = np.arange(start, start + part.size, dtype=np.uint64)
    odd = (index * 2 + 1).astype(np.uint32)
    result += int(np.sum(words * odd, dtype=np.uint32))
  return result % (1 << 32)


def combine(sums: Mapping[str, Any]) -> int:
  """Combines the sums of named arrays to the checksum of their tree."""
  return sum(
    int(each) * (zlib.crc32(name.encode()) | 1) for name, each in sums.items()
  ) % (1 << 32)


def _is_small(x: jax.Array) -> bool:
  # Most arrays are small. Compiling a program per shape would take seconds.
  return x.nbytes < 1 << 18 and (
    getattr(x, "is_fully_addressable", True) or x.is_fully_replicated
  )


# Compiled per array and not per tree, as parameters and moments share shapes.
@jax.jit
def _device_sum(x: jax.Array) -> jax.Array:
  unsigned = _UNSIGNED[x.dtype.itemsize]
  words = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
  return jnp.sum(words * _weights(words.shape), dtype=jnp.uint32)


_CHUNK = 1 << 20
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def _weights(shape: tuple[int, ...]) -> jax.Array:
  """Returns the odd numbers 1, 3, 5, ... modulo 2^32, in row-major order."""
  index = jnp.zeros((), np.uint32)
  for axis, length in enumerate(shape):
    here = jnp.arange(length, dtype=np.uint32)
    here = here.reshape((length,) + (1,) * (len(shape) - axis - 1))
    index = index * np.uint32(length) + here
  return index * np.uint32(2) + np.uint32(1)


def add_crc(content: dict[str, Any]) -> dict[str, Any]:
  """Adds the checksum of JSON content to it, under "crc32"."""
  return content | {"crc32": json_crc(content)}


def check_crc(content: dict[str, Any]) -> dict[str, Any]:
  """Checks and removes the checksum that `add_crc` added.

  Raises:
    ValueError: if the content has changed.
  """
  found = {key: value for key, value in content.items() if key != "crc32"}
  if json_crc(found) != content["crc32"]:
    raise ValueError("the checksum of its loop item is wrong")
  return found


def json_crc(content: Any) -> int:
  """Computes the CRC-32 of JSON content."""
  return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def flatten(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by their paths, joined by "/".

  `flax.traverse_util.unflatten_dict` is the inverse for nested dicts.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }
