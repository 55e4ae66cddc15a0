"""The pre-norm transformer stack that encoder and decoder share.

Blocks are one `nn.scan` over parameters of shape (depth, ...). Compile time
does not grow with depth, and per-layer quantities are vectors along that axis.
`unroll` and `remat` change speed and memory, never a checkpoint.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from mae_jax.distributed import sharding
from mae_jax.models import architecture, attention


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


@dataclasses.dataclass(frozen=True)
class TransformerConfig(architecture.Dims):
  """The dimensions of a stack of blocks, and how to compute it.

  Attributes not listed here are those of `architecture.Dims`. The defaults are
  the reference's.

  Attributes:
    dtype: of activations.
    remat: a name in REMAT_POLICIES.
    unroll: blocks per scan step; changes only speed.
    frozen: number of leading blocks to freeze, with all layers before them;
      their backward pass is skipped.
    norm_eps: epsilon of every LayerNorm.
    activation: a name in ACTIVATION_FUNCTIONS.
    chunk_bytes: as in `attention.attend`.
  """

  dtype: Any = jnp.float32
  remat: str = "none"
  unroll: int = 1
  frozen: int = 0
  norm_eps: float = 1e-6
  activation: str = "gelu"
  chunk_bytes: int = 0


def dense(features: int, dtype: Any, name: str) -> nn.Dense:
  """Builds a dense layer with the reference's initialization."""
  return nn.Dense(
    features,
    dtype=dtype,
    kernel_init=nn.initializers.xavier_uniform(),
    name=name,
  )


def layer_norm(name: str, eps: float) -> nn.LayerNorm:
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

  config: TransformerConfig

  @nn.compact
  def __call__(
    self, x: jax.Array, attended: jax.Array | None = None
  ) -> jax.Array:
    """Attends: [B, N, D] -> [B, N, D]; softmax in float32."""
    config = self.config
    # Rows of the fused kernel are [q; k; v], each (heads, head_dim).
    qkv = dense(3 * config.width, config.dtype, "qkv")(x)
    if self.is_mutable_collection("intermediates"):
      weights = attention.weights(qkv, config.heads)
      self.sow("intermediates", "weights", weights)
    out = attention.attend(qkv, config.heads, config.chunk_bytes, attended)
    return dense(config.width, config.dtype, "proj")(out)


class Mlp(nn.Module):
  """Two dense layers with one of ACTIVATIONS between them."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, N, D] to [B, N, D]."""
    config = self.config
    hidden = dense(config.mlp_dim, config.dtype, "fc1")(x)
    hidden = ACTIVATION_FUNCTIONS[config.activation](hidden)
    return dense(config.width, config.dtype, "fc2")(hidden)


class Block(nn.Module):
  """A pre-norm transformer block; returns a pair, as `nn.scan` requires."""

  config: TransformerConfig

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    residual_scale: jax.Array | None,
    attended: jax.Array | None = None,
  ) -> tuple[jax.Array, None]:
    """Maps [B, N, D] to itself; `residual_scale` [B, 2] scales the branches."""

    def branch(out: jax.Array, number: int) -> jax.Array:
      if residual_scale is None:
        return out
      # Float32, because rounding 1 / (1 - rate) would bias the branches.
      return (out * residual_scale[:, number, None, None]).astype(out.dtype)

    config = self.config
    x = sharding.constrain_batch(x)
    normed = layer_norm(_NORMS[0], config.norm_eps)(x).astype(config.dtype)
    x = x + branch(Attention(config, name="attn")(normed, attended), 0)
    normed = layer_norm(_NORMS[1], config.norm_eps)(x).astype(config.dtype)
    x = x + branch(Mlp(config, name="mlp")(normed), 1)
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
  """A stack of blocks with parameters stacked along a leading axis."""

  config: TransformerConfig

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    residual_scale: jax.Array | None = None,
    outputs: Sequence[int] = (),
    attended: jax.Array | None = None,
  ) -> Any:
    """Applies the blocks.

    Args:
      x: [B, N, D].
      residual_scale: from `drop_path`, or None.
      outputs: increasing numbers of blocks, from 1.
      attended: bool [B, N], the tokens that attention reads; None for all.

    Returns:
      [B, N, D]; with `outputs`, a list of the tokens after each of them.
    """
    config = self.config
    if outputs:
      found = []
      for start, stop in itertools.pairwise((0, *outputs)):
        x = self._run_blocks(x, residual_scale, slice(start, stop), attended)
        found.append(x)
      return found
    if config.frozen and not self.is_initializing():
      first, rest = slice(None, config.frozen), slice(config.frozen, None)
      x = self._run_blocks(x, residual_scale, first, attended)
      x = jax.lax.stop_gradient(x)
      return self._run_blocks(x, residual_scale, rest, attended)
    block: Any = Block
    if config.remat != "none":
      policy = REMAT_POLICIES[config.remat]
      block = nn.remat(Block, policy=policy, prevent_cse=False)
    blocks = nn.scan(
      block,
      variable_axes={"params": 0, "intermediates": 0},
      split_rngs={"params": True},
      in_axes=(0, nn.broadcast),
      length=config.depth,
      unroll=min(config.unroll, config.depth),
    )
    if config.dtype != jnp.float32 and not self.is_initializing():
      cast = functools.partial(_cast_dense, dtype=config.dtype)
      blocks = nn.map_variables(blocks, "params", cast)
    x, _ = blocks(config, name="blocks")(x, residual_scale, attended)
    return x

  def _run_blocks(
    self,
    x: jax.Array,
    residual_scale: jax.Array | None,
    blocks: slice,
    attended: jax.Array | None,
  ) -> jax.Array:
    """Runs a slice of the blocks, as a smaller stack."""
    params = jax.tree.map(lambda p: p[blocks], self.variables["params"])
    depth = len(range(self.config.depth)[blocks])
    if not depth:
      return x
    config = dataclasses.replace(self.config, depth=depth, frozen=0)
    stack = Stack(config, parent=None)
    residual_scale = None if residual_scale is None else residual_scale[blocks]
    out: Any = stack.apply(
      {"params": params}, x, residual_scale, attended=attended
    )
    return out
