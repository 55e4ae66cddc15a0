"""Stores exported weights as float32, bfloat16 or int8.

Only kernels are quantized: they hold nearly all bytes, while rounding of norms,
biases, tokens and positions costs accuracy. The program converts stored weights
to float32 before it computes.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

Weights = dict[str, jax.Array]
KINDS = ("float32", "bfloat16", "int8")  # of kernels, as in --weights

_KERNEL = "kernel"
_SCALE = "_scale"
_LARGEST = 127  # symmetric: -128 is not used


@jax.jit
def quantize_kernel(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Rounds a kernel to int8, symmetrically for each output channel.

  Args:
    kernel: [..., in, out]; leading axes are layers.

  Returns:
    The int8 kernel and its float32 scale [..., 1, out]; 1 for channels of
    zeros.
  """
  largest = jnp.abs(kernel).max(axis=-2, keepdims=True)
  scale = jnp.where(largest == 0, 1, largest / _LARGEST)
  steps = jnp.round(kernel / scale).clip(-_LARGEST, _LARGEST)
  return steps.astype(jnp.int8), scale


def store(params: Any, kind: str) -> Weights:
  """Converts parameters to a flat dict of stored arrays.

  Args:
    params: a tree of float32, on one CPU device.
    kind: a name in KINDS.

  Returns:
    Arrays by their keys joined by "/"; "float32" does not copy them.

  Raises:
    ValueError: if there is no such kind.
  """
  if kind not in KINDS:
    raise ValueError(f"kind={kind!r} is not known: known are {KINDS}")
  result: Weights = {}
  for name, leaf in traverse_util.flatten_dict(params, sep="/").items():
    is_kernel = name.rpartition("/")[2] == _KERNEL
    if is_kernel and kind == "int8":
      result[name], result[name + _SCALE] = quantize_kernel(leaf)
    elif is_kernel and kind == "bfloat16":
      result[name] = leaf.astype(jnp.bfloat16)
    else:
      result[name] = leaf
  return result


def restore(weights: Mapping[str, Any]) -> Any:
  """Returns the float32 parameters; the inverse of `store`, traceable."""
  flat = {}
  for name, value in weights.items():
    if name.endswith(_KERNEL + _SCALE):
      continue
    value = value.astype(jnp.float32)
    scale = weights.get(name + _SCALE)
    flat[name] = value if scale is None else value * scale
  return traverse_util.unflatten_dict(flat, sep="/")
