"""What a network's weights are stored as, and how a program reads them.

Only kernels are made smaller: they are all of the size, and norms, biases,
tokens and positions are where rounding hurts. Whatever is stored, a program
makes float32 of it, and computes as it would have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

Weights = dict[str, jax.Array]

_KERNEL = "kernel"
_SCALE = "_scale"
_LARGEST = 127  # -128 would have no positive counterpart


def _as_bfloat16(name: str, kernel: jax.Array) -> Weights:
  return {name: kernel.astype(jnp.bfloat16)}


@jax.jit
def quantized(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Rounds a kernel to int8, symmetrically, channel by channel.

  Args:
    kernel: [..., in, out], of which leading axes count layers.

  Returns:
    int8 like it, and the float32 scale [..., 1, out] that it is multiplied by;
    a channel of zeros has scale 1.
  """
  largest = jnp.abs(kernel).max(axis=-2, keepdims=True)
  scale = jnp.where(largest == 0, 1, largest / _LARGEST)
  steps = jnp.round(kernel / scale).clip(-_LARGEST, _LARGEST)
  return steps.astype(jnp.int8), scale


def _as_int8(name: str, kernel: jax.Array) -> Weights:
  steps, scale = quantized(kernel)
  return {name: steps, name + _SCALE: scale}


# What becomes of a kernel, by --weights.
KINDS: dict[str, Callable[[str, jax.Array], Weights]] = {
  "float32": lambda name, kernel: {name: kernel},
  "bfloat16": _as_bfloat16,
  "int8": _as_int8,
}


def store(params: Any, kind: str) -> Weights:
  """Parameters as a flat dict.

  Args:
    params: a tree of float32, on one CPU device.
    kind: a name in KINDS.

  Returns:
    Arrays by their keys joined by "/"; those of "float32" are the very leaves
    of `params`.
  """
  result: Weights = {}
  for name, leaf in traverse_util.flatten_dict(params, sep="/").items():
    is_kernel = name.rpartition("/")[2] == _KERNEL
    result |= KINDS[kind](name, leaf) if is_kernel else {name: leaf}
  return result


def restore(weights: Mapping[str, Any]) -> Any:
  """The tree of float32 parameters again; may be traced."""
  flat = {}
  for name, value in weights.items():
    if name.endswith(_KERNEL + _SCALE):
      continue
    value = value.astype(jnp.float32)
    scale = weights.get(name + _SCALE)
    flat[name] = value if scale is None else value * scale
  return traverse_util.unflatten_dict(flat, sep="/")
