"""The pre-norm transformer stack that encoder and decoder share.

Blocks are one `nn.scan` over parameters of shape (depth, ...). Compile time
does not grow with depth, and per-layer quantities are vectors along that axis.
`unroll` and `remat` change speed and memory, never a checkpoint.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from mae_jax.distributed import sharding
from mae_jax.models import attention

# The reference's values; imported networks may have others.
NORM_EPS = 1e-6
ACTIVATION = "gelu"


def gelu(x: jax.Array) -> jax.Array:
  """Computes the exact GELU in float32: x times the normal CDF of x.

  Uses 1 + erf, as PyTorch does. `jax.nn.gelu` uses erfc, with which a step on
  CPU takes twice the time.
  """
  wide = x.astype(jnp.float32)
  return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def gelu_elementary(x: jax.Array) -> jax.Array:
  """Computes `gelu` with additions and products alone, for exported programs.

  TensorFlow's StableHLO has no erf. Here erf(x) / x is a Chebyshev series in
  x^2 of degree 16 up to |x| = 4, where erf is 1. The error of the result is at
  most 2.5e-7 max(|x|, 1). Exported programs need no gradient.
  """
  wide = jnp.clip(x.astype(jnp.float32) * 0.5**0.5, -4, 4)
  t = wide * wide / 8 - 1  # [0, 16] as [-1, 1]
  first, *others = _erf_series()
  last = before = jnp.zeros_like(wide)
  for coefficient in reversed(others):  # Clenshaw's recurrence
    last, before = 2 * t * last - before + coefficient, last
  erf = wide * (t * last - before + first)
  return (0.5 * x.astype(jnp.float32) * (1 + erf)).astype(x.dtype)


@functools.cache
def _erf_series() -> tuple[float, ...]:
  def function(t: np.ndarray) -> np.ndarray:
    root = np.sqrt(8 * (t + 1))
    return scipy.special.erf(root) / root

  series = np.polynomial.chebyshev.Chebyshev.interpolate(function, 16)
  return tuple(series.coef.tolist())


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "gelu": gelu,
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
}
# Replacements in exported programs, by names that are no settings.
PORTABLE_ACTIVATIONS = {"gelu": "gelu_elementary"}
ACTIVATION_FUNCTIONS = ACTIVATIONS | {"gelu_elementary": gelu_elementary}

_NORMS = ("norm1", "norm2")  # computed in float32

# Activations to save for the backward pass; "none" saves all.
REMAT_POLICIES = {
  "none": None,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}


def dense(features: int, dtype: Any, name: str) -> nn.Dense:
  """Builds a dense layer with the reference's initialization."""
  return nn.Dense(
    features,
    dtype=dtype,
    kernel_init=nn.initializers.xavier_uniform(),
    name=name,
  )


def layer_norm(name: str, eps: float = NORM_EPS) -> nn.LayerNorm:
  """Builds a LayerNorm in float32, whatever the compute dtype."""
  return nn.LayerNorm(epsilon=eps, dtype=jnp.float32, name=name)


def drop_path(noise: jax.Array, rate: float) -> jax.Array:
  """Computes scales of residual branches for stochastic depth.

  Block i of n drops a branch for an example with probability rate * i / (n -
  1), and scales the branches that remain up by the inverse (Huang et al. 2016,
  arXiv 1603.09382).

  Args:
    noise: [B, depth, 2] uniform in [0, 1), for the two branches of each block.
    rate: drop probability of the last block, below 1.

  Returns:
    [depth, B, 2] float32.
  """
  rates = np.linspace(0, rate, noise.shape[1], dtype=np.float32)[:, None]
  scale = (noise >= rates) / (1 - rates)
  return jnp.moveaxis(scale.astype(jnp.float32), 1, 0)


class Attention(nn.Module):
  """Multi-head self-attention with one fused projection to q, k and v.

  If the collection "intermediates" is mutable, it receives the attention
  weights [B, heads, N, N] float32 as "weights".
  """

  heads: int
  dtype: Any = jnp.float32
  chunk_bytes: int = 0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Attends: [B, N, D] -> [B, N, D]; softmax in float32."""
    width = x.shape[-1]
    # Rows of the fused kernel are [q; k; v], each (heads, head_dim).
    qkv = dense(3 * width, self.dtype, "qkv")(x)
    if self.is_mutable_collection("intermediates"):
      weights = attention.weights(qkv, self.heads)
      self.sow("intermediates", "weights", weights)
    out = attention.attend(qkv, self.heads, self.chunk_bytes)
    return dense(width, self.dtype, "proj")(out)


class Mlp(nn.Module):
  """Two dense layers with one of ACTIVATIONS between them."""

  mlp_dim: int
  dtype: Any = jnp.float32
  activation: str = ACTIVATION

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, N, D] to [B, N, D]."""
    hidden = dense(self.mlp_dim, self.dtype, "fc1")(x)
    hidden = ACTIVATION_FUNCTIONS[self.activation](hidden)
    return dense(x.shape[-1], self.dtype, "fc2")(hidden)


class Block(nn.Module):
  """A pre-norm transformer block; returns a pair, as `nn.scan` requires."""

  heads: int
  mlp_dim: int
  dtype: Any = jnp.float32
  norm_eps: float = NORM_EPS
  activation: str = ACTIVATION
  chunk_bytes: int = 0

  @nn.compact
  def __call__(
    self, x: jax.Array, residual_scale: jax.Array | None
  ) -> tuple[jax.Array, None]:
    """Maps [B, N, D] to itself; `residual_scale` [B, 2] scales the branches."""

    def branch(out: jax.Array, number: int) -> jax.Array:
      if residual_scale is None:
        return out
      # Float32, because rounding 1 / (1 - rate) would bias the branches.
      return (out * residual_scale[:, number, None, None]).astype(out.dtype)

    x = sharding.constrain_batch(x)
    attn = Attention(self.heads, self.dtype, self.chunk_bytes, name="attn")
    normed = layer_norm(_NORMS[0], self.norm_eps)(x).astype(self.dtype)
    x = x + branch(attn(normed), 0)
    mlp = Mlp(self.mlp_dim, self.dtype, self.activation, name="mlp")
    normed = layer_norm(_NORMS[1], self.norm_eps)(x).astype(self.dtype)
    x = x + branch(mlp(normed), 1)
    return sharding.constrain_batch(x), None


def _cast_dense(variables: Any, dtype: Any) -> Any:
  """Casts the parameters of dense layers before the scan instead of inside.

  Gradients of all layers are then stacked in the compute dtype, not as float32
  copies of the same numbers.
  """

  def cast(path: Any, x: jax.Array) -> jax.Array:
    norm = any(key.key in _NORMS for key in path)
    return x if norm else x.astype(dtype)

  return jax.tree_util.tree_map_with_path(cast, variables)


class Stack(nn.Module):
  """A stack of `depth` blocks with parameters stacked along a leading axis.

  Attributes:
    depth: number of blocks.
    heads: number of attention heads, a divisor of the width.
    mlp_dim: hidden width of the MLP.
    dtype: of activations.
    remat: a name in REMAT_POLICIES.
    unroll: blocks per scan step; changes only speed.
    frozen: number of leading blocks to freeze, with all layers before them;
      their backward pass is skipped.
    norm_eps: epsilon of every LayerNorm.
    activation: a name in ACTIVATION_FUNCTIONS.
    chunk_bytes: as in `attention.attend`.
  """

  depth: int
  heads: int
  mlp_dim: int
  dtype: Any = jnp.float32
  remat: str = "none"
  unroll: int = 1
  frozen: int = 0
  norm_eps: float = NORM_EPS
  activation: str = ACTIVATION
  chunk_bytes: int = 0

  @nn.compact
  def __call__(
    self, x: jax.Array, residual_scale: jax.Array | None = None
  ) -> jax.Array:
    """Maps [B, N, D] to itself; `residual_scale` comes from `drop_path`."""
    if self.frozen and not self.is_initializing():
      x = self._run_blocks(x, residual_scale, slice(None, self.frozen))
      x = jax.lax.stop_gradient(x)
      return self._run_blocks(x, residual_scale, slice(self.frozen, None))
    block: Any = Block
    if self.remat != "none":
      block = nn.remat(
        Block, policy=REMAT_POLICIES[self.remat], prevent_cse=False
      )
    blocks = nn.scan(
      block,
      variable_axes={"params": 0, "intermediates": 0},
      split_rngs={"params": True},
      length=self.depth,
      unroll=min(self.unroll, self.depth),
    )
    if self.dtype != jnp.float32 and not self.is_initializing():
      blocks = nn.map_variables(
        blocks, "params", functools.partial(_cast_dense, dtype=self.dtype)
      )
    x, _ = blocks(
      self.heads,
      self.mlp_dim,
      self.dtype,
      self.norm_eps,
      self.activation,
      self.chunk_bytes,
      name="blocks",
    )(x, residual_scale)
    return x

  def _run_blocks(
    self, x: jax.Array, residual_scale: jax.Array | None, blocks: slice
  ) -> jax.Array:
    """Runs a slice of the blocks, as a smaller stack."""
    params = jax.tree.map(lambda p: p[blocks], self.variables["params"])
    depth = len(range(self.depth)[blocks])
    if not depth:
      return x
    stack = self.clone(depth=depth, frozen=0, parent=None, name=None)
    residual_scale = None if residual_scale is None else residual_scale[blocks]
    out: Any = stack.apply({"params": params}, x, residual_scale)
    return out
