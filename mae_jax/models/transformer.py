"""The pre-norm transformer stack that encoder and decoder share.

Blocks are one `nn.scan` over parameters of shape (depth, ...), so that compile
time does not grow with depth and a per-layer quantity is a vector along that
axis. `unroll` and `remat` change speed and memory, never a checkpoint.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.distributed import sharding
from mae_jax.models import attention

# What the reference has; networks from elsewhere may differ.
NORM_EPS = 1e-6
ACTIVATION = "gelu"


def gelu(x: jax.Array) -> jax.Array:
  """The exact GELU, in float32: x times the normal distribution function of x.

  By 1 + erf, as PyTorch has it. `jax.nn.gelu` takes erfc, in which a step on
  CPU spends twice the time.
  """
  wide = x.astype(jnp.float32)
  return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "gelu": gelu,
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
}
# By names that are no settings, for programs that others read: TensorFlow's
# StableHLO has no erf.
PORTABLE_ACTIVATIONS = {"gelu": "gelu_erfc"}
ACTIVATION_FUNCTIONS = ACTIVATIONS | {
  "gelu_erfc": functools.partial(jax.nn.gelu, approximate=False)
}

_NORMS = ("norm1", "norm2")  # computed in float32

# What the backward pass keeps; "none" keeps everything.
REMAT_POLICIES = {
  "none": None,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}


def dense(features: int, dtype: Any, name: str) -> nn.Dense:
  """A dense layer as the reference initializes all of them."""
  return nn.Dense(
    features,
    dtype=dtype,
    kernel_init=nn.initializers.xavier_uniform(),
    name=name,
  )


def layer_norm(name: str, eps: float = NORM_EPS) -> nn.LayerNorm:
  """LayerNorm in float32, whatever the compute dtype."""
  return nn.LayerNorm(epsilon=eps, dtype=jnp.float32, name=name)


def drop_path(noise: jax.Array, rate: float) -> jax.Array:
  """What each residual branch is multiplied by (stochastic depth).

  A branch of block i of n is dropped for an example with probability
  rate * i / (n - 1), and what stays is scaled up by as much (Huang et al. 2016,
  arXiv 1603.09382).

  Args:
    noise: [B, depth, 2] uniform draws in [0, 1), for the two branches of each
      block.
    rate: of the last block, below 1.

  Returns:
    [depth, B, 2] float32.
  """
  rates = np.linspace(0, rate, noise.shape[1], dtype=np.float32)[:, None]
  kept = (noise >= rates) / (1 - rates)
  return jnp.moveaxis(kept.astype(jnp.float32), 1, 0)


class Attention(nn.Module):
  """Multi-head self-attention with one fused projection to q, k and v.

  Where "intermediates" are asked for, the weights [B, heads, N, N] float32 are
  among them as "weights".
  """

  heads: int
  dtype: Any = jnp.float32
  part_bytes: int = 0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, N, D] -> [B, N, D]; softmax in float32."""
    width = x.shape[-1]
    # Rows of the fused kernel are [q; k; v], each (heads, head_dim).
    qkv = dense(3 * width, self.dtype, "qkv")(x)
    if self.is_mutable_collection("intermediates"):
      weights = attention.weights(qkv, self.heads)
      self.sow("intermediates", "weights", weights)
    out = attention.attend(qkv, self.heads, self.part_bytes)
    return dense(width, self.dtype, "proj")(out)


class Mlp(nn.Module):
  """Two dense layers with one of ACTIVATIONS between them."""

  mlp_dim: int
  dtype: Any = jnp.float32
  activation: str = ACTIVATION

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, N, D] -> [B, N, D]."""
    hidden = dense(self.mlp_dim, self.dtype, "fc1")(x)
    hidden = ACTIVATION_FUNCTIONS[self.activation](hidden)
    return dense(x.shape[-1], self.dtype, "fc2")(hidden)


class Block(nn.Module):
  """A pre-norm transformer block; returns a pair, as `nn.scan` wants it."""

  heads: int
  mlp_dim: int
  dtype: Any = jnp.float32
  norm_eps: float = NORM_EPS
  activation: str = ACTIVATION
  part_bytes: int = 0

  @nn.compact
  def __call__(
    self, x: jax.Array, kept: jax.Array | None
  ) -> tuple[jax.Array, None]:
    """[B, N, D] -> [B, N, D]; the branches are multiplied by `kept` [B, 2]."""

    def branch(out: jax.Array, number: int) -> jax.Array:
      if kept is None:
        return out
      # In float32: 1 / (1 - rate) rounded would be a bias.
      return (out * kept[:, number, None, None]).astype(out.dtype)

    x = sharding.constrain_batch(x)
    attn = Attention(self.heads, self.dtype, self.part_bytes, name="attn")
    normed = layer_norm(_NORMS[0], self.norm_eps)(x).astype(self.dtype)
    x = x + branch(attn(normed), 0)
    mlp = Mlp(self.mlp_dim, self.dtype, self.activation, name="mlp")
    normed = layer_norm(_NORMS[1], self.norm_eps)(x).astype(self.dtype)
    x = x + branch(mlp(normed), 1)
    return sharding.constrain_batch(x), None


def _cast_dense(variables: Any, dtype: Any) -> Any:
  """Casts what dense layers would cast, before the scan and not in it.

  The gradients of all layers are then stacked in the smaller type, as they are
  computed, and not as float32 copies of the same numbers.
  """

  def cast(path: Any, x: jax.Array) -> jax.Array:
    norm = any(key.key in _NORMS for key in path)
    return x if norm else x.astype(dtype)

  return jax.tree_util.tree_map_with_path(cast, variables)


class Stack(nn.Module):
  """`depth` blocks whose parameters are stacked along a leading axis.

  Attributes:
    depth: number of blocks.
    heads: attention heads, a divisor of the width.
    mlp_dim: hidden width of the MLP.
    dtype: of activations.
    remat: a name in REMAT_POLICIES.
    unroll: blocks a scan step; a speed setting only.
    frozen: how many of the first blocks, and what comes before them, no
      gradient reaches: of these there is no backward pass.
    norm_eps: of every LayerNorm.
    activation: a name in ACTIVATIONS, or what PORTABLE has for it.
    part_bytes: see `attention.attend`.
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
  part_bytes: int = 0

  @nn.compact
  def __call__(self, x: jax.Array, kept: jax.Array | None = None) -> jax.Array:
    """[B, N, D] -> [B, N, D]; `kept` [depth, B, 2] comes from `drop_path`."""
    if self.frozen and not self.is_initializing():
      lower = self._part(x, kept, slice(None, self.frozen))
      lower = jax.lax.stop_gradient(lower)
      return self._part(lower, kept, slice(self.frozen, None))
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
      self.part_bytes,
      name="blocks",
    )(x, kept)
    return x

  def _part(
    self, x: jax.Array, kept: jax.Array | None, which: slice
  ) -> jax.Array:
    """Some of the blocks, as a stack of their own with slices of these."""
    params = jax.tree.map(lambda p: p[which], self.variables["params"])
    depth = len(range(self.depth)[which])
    if not depth:
      return x
    stack = self.clone(depth=depth, frozen=0, parent=None, name=None)
    kept = None if kept is None else kept[which]
    out: Any = stack.apply({"params": params}, x, kept)
    return out
