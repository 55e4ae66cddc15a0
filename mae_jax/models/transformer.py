"""The pre-norm transformer stack that encoder and decoder share.

Blocks are one `nn.scan` over parameters of shape (depth, ...), so that compile
time does not grow with depth and a per-layer quantity is a vector along that
axis. `unroll` and `remat` change speed and memory, never a checkpoint.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mae_jax.models import partition

LAYER_NORM_EPS = 1e-6

# What the backward pass keeps; "none" keeps everything.
REMAT_POLICIES = {
  "none": None,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}


def dense(features: int, dtype: Any, name: str) -> nn.Dense:
  """A dense layer as the reference initialises all of them."""
  return nn.Dense(
    features,
    dtype=dtype,
    kernel_init=nn.initializers.xavier_uniform(),
    name=name,
  )


def layer_norm(name: str) -> nn.LayerNorm:
  """LayerNorm in float32, whatever the compute dtype."""
  return nn.LayerNorm(epsilon=LAYER_NORM_EPS, dtype=jnp.float32, name=name)


class Attention(nn.Module):
  """Multi-head self-attention with one fused projection to q, k and v."""

  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, N, D] -> [B, N, D]; softmax in float32."""
    batch, length, width = x.shape
    head_dim = width // self.heads
    qkv = dense(3 * width, self.dtype, "qkv")(x)
    # Rows of the fused kernel are [q; k; v], each (heads, head_dim).
    qkv = qkv.reshape(batch, length, 3, self.heads, head_dim)
    q, k, v = (qkv[:, :, i] for i in range(3))  # [B, N, heads, head_dim]
    logits = jnp.einsum(
      "bnhd,bmhd->bhnm",
      q * head_dim**-0.5,
      k,
      preferred_element_type=jnp.float32,
    )
    weights = jax.nn.softmax(logits, axis=-1)
    out = jnp.einsum("bhnm,bmhd->bnhd", weights.astype(self.dtype), v)
    return dense(width, self.dtype, "proj")(out.reshape(x.shape))


class Mlp(nn.Module):
  """Two dense layers with an exact (erf) GELU between them."""

  mlp_dim: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, N, D] -> [B, N, D]."""
    hidden = dense(self.mlp_dim, self.dtype, "fc1")(x)
    hidden = nn.gelu(hidden, approximate=False)
    return dense(x.shape[-1], self.dtype, "fc2")(hidden)


class Block(nn.Module):
  """A pre-norm transformer block; returns a pair, as `nn.scan` wants it."""

  heads: int
  mlp_dim: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
    """[B, N, D] -> [B, N, D]."""
    x = partition.constrain_batch(x)
    attention = Attention(self.heads, self.dtype, name="attn")
    x = x + attention(layer_norm("norm1")(x).astype(self.dtype))
    mlp = Mlp(self.mlp_dim, self.dtype, name="mlp")
    x = x + mlp(layer_norm("norm2")(x).astype(self.dtype))
    return partition.constrain_batch(x), None


class Stack(nn.Module):
  """`depth` blocks whose parameters are stacked along a leading axis.

  Attributes:
    depth: number of blocks.
    heads: attention heads, a divisor of the width.
    mlp_dim: hidden width of the MLP.
    dtype: of activations.
    remat: a name in REMAT_POLICIES.
    unroll: blocks a scan step; a speed setting only.
  """

  depth: int
  heads: int
  mlp_dim: int
  dtype: Any = jnp.float32
  remat: str = "none"
  unroll: int = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, N, D] -> [B, N, D]."""
    block: Any = Block
    if self.remat != "none":
      block = nn.remat(
        Block, policy=REMAT_POLICIES[self.remat], prevent_cse=False
      )
    blocks = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=self.depth,
      unroll=min(self.unroll, self.depth),
    )
    x, _ = blocks(self.heads, self.mlp_dim, self.dtype, name="blocks")(x, None)
    return x
