"""The masked autoencoder: encoder on visible patches, light decoder on all.

Stages carry the reference's names (forward_encoder, forward_decoder,
forward_loss). Encoder and decoder are modules of their own, so that a
fine-tune takes `params["encoder"]` and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from mae_jax.models import losses, masking, patchify, targets, transformer
from mae_jax.models import pos_embed as positions

_TOKEN_INIT = nn.initializers.normal(0.02)


@flax.struct.dataclass
class Tokens:
  """What the encoder gives, with the class token held apart by name.

  Attributes:
    cls: [B, D] the class token.
    patches: [B, K, D] the patches it was shown, in the order shown.
  """

  cls: jax.Array
  patches: jax.Array


# One vector an image. "all" keeps what is where, at K times the length.
POOLINGS: dict[str, Callable[[Tokens], jax.Array]] = {
  "mean": lambda tokens: tokens.patches.mean(axis=1),  # [B, D]
  "cls": lambda tokens: tokens.cls,  # [B, D]
  "all": lambda tokens: tokens.patches.reshape(tokens.patches.shape[0], -1),
}


class AuxiliaryLoss(Protocol):
  """What costs besides an error of each patch."""

  def __call__(
    self, pred: jax.Array, target: jax.Array, masked: masking.Masking
  ) -> jax.Array:
    """Predictions and targets [B, L, T] and what was hidden -> a scalar."""

  def check(self, hidden: int, batch: int) -> None:
    """Raises ValueError if so many hidden patches an image are too few."""

  def flops(self, hidden: int, width: int, batch: int) -> int:
    """Of a step on one image of B, with so many hidden patches of T values."""


@flax.struct.dataclass
class MaeOutput:
  """Everything a step, a test or a picture wants.

  Attributes:
    loss: scalar float32, of all there is.
    parts: what it is made of, by name, if of more than the reconstruction.
    pred: [B, L, T] what is predicted of patches, float32.
    mask: [B, L] float32, 1 = removed; [B, L, P] where pixels are.
  """

  loss: jax.Array
  parts: dict[str, jax.Array]
  pred: jax.Array
  mask: jax.Array


class Encoder(nn.Module):
  """The ViT encoder; shown all patches, or those that a mask keeps.

  Attributes:
    patch_size: height and width of a patch in pixels.
    width: D.
    depth: number of blocks.
    heads: attention heads.
    mlp_dim: hidden width of the MLP.
    dtype: of activations.
    remat: see `transformer.Stack`.
    unroll: see `transformer.Stack`.
    learned_positions: whether the position table is a parameter, "pos_embed"
      [1, 1 + L, D], that begins as the fixed one; the class token has row 0.
    final_norm: whether the tokens pass the final LayerNorm.
    frozen: see `transformer.Stack`.
    norm_eps: see `transformer.Stack`.
    activation: see `transformer.Stack`.
    part_bytes: see `transformer.Stack`.
  """

  patch_size: tuple[int, int]
  width: int
  depth: int
  heads: int
  mlp_dim: int
  dtype: Any = jnp.float32
  remat: str = "none"
  unroll: int = 1
  learned_positions: bool = False
  final_norm: bool = True
  frozen: int = 0
  norm_eps: float = transformer.NORM_EPS
  activation: str = transformer.ACTIVATION
  part_bytes: int = 0

  @nn.compact
  def __call__(
    self,
    images: jax.Array,
    masked: masking.Masking | None = None,
    kept: jax.Array | None = None,
    hide: Callable[[jax.Array], jax.Array] = lambda x: x,
  ) -> Tokens:
    """Encodes images.

    Args:
      images: [B, H, W, C], normalized.
      masked: which patches to show; None for all, in order.
      kept: [depth, B, 2], see `transformer.drop_path`; None for all.
      hide: puts something else in the place of embedded patches [B, L, D],
        before they are told where they are.

    Returns:
      Tokens of float32.
    """
    grid = patchify.grid_size(images.shape[1:3], self.patch_size)
    table = jnp.asarray(positions.sincos_2d(grid, self.width))  # [L, D]
    cls = self.param("cls_token", _TOKEN_INIT, (1, 1, self.width))
    if self.learned_positions:
      # [1, 1 + L, D]
      pos_embed = self.param("pos_embed", lambda _: positions.with_cls(table))
      cls, table = cls + pos_embed[:, :1], pos_embed[0, 1:]
    x = patchify.patchify(images, self.patch_size).astype(self.dtype)
    # A dense layer, not a convolution: xavier then sees a (p*q*C, D) matrix.
    x = transformer.dense(self.width, self.dtype, "patch_embed")(x)
    x = hide(x) + table.astype(self.dtype)  # before masking
    if masked is not None:
      x = masking.visible_only(x, masked)
    x = _prepend(cls, x)
    stack = transformer.Stack(
      self.depth,
      self.heads,
      self.mlp_dim,
      self.dtype,
      self.remat,
      self.unroll,
      self.frozen,
      self.norm_eps,
      self.activation,
      self.part_bytes,
      name="stack",
    )
    x = stack(x, kept)
    if self.final_norm:
      x = transformer.layer_norm("norm", self.norm_eps)(x)
    x = x.astype(jnp.float32)
    return Tokens(x[:, 0], x[:, 1:])


class Decoder(nn.Module):
  """Predicts the target of every patch from the visible ones.

  Attributes:
    grid: rows and columns of patches.
    target_dim: T, values that are predicted of a patch.
    width: width of the decoder.
    depth: number of blocks.
    heads: attention heads.
    mlp_dim: hidden width of the MLP.
    dtype: of activations.
    remat: see `transformer.Stack`.
    unroll: see `transformer.Stack`.
    learned_positions: as in `Encoder`; "pos_embed" is [1, 1 + L, D].
    norm_eps: see `transformer.Stack`.
    activation: see `transformer.Stack`.
    part_bytes: see `transformer.Stack`.
  """

  grid: tuple[int, int]
  target_dim: int
  width: int
  depth: int
  heads: int
  mlp_dim: int
  dtype: Any = jnp.float32
  remat: str = "none"
  unroll: int = 1
  learned_positions: bool = False
  norm_eps: float = transformer.NORM_EPS
  activation: str = transformer.ACTIVATION
  part_bytes: int = 0

  @nn.compact
  def __call__(self, tokens: Tokens, masked: masking.Masking) -> jax.Array:
    """Tokens of [B, K, D] and what was hidden -> [B, L, T] float32."""
    embed = transformer.dense(self.width, self.dtype, "embed")
    joined = jnp.concatenate([tokens.cls[:, None], tokens.patches], axis=1)
    x = embed(joined.astype(self.dtype))
    cls, visible = x[:, :1], x[:, 1:]
    mask_token = self.param("mask_token", _TOKEN_INIT, (1, 1, self.width))
    x = masking.unshuffle(visible, mask_token.astype(self.dtype), masked)
    table = jnp.asarray(positions.sincos_2d(self.grid, self.width))  # [L, D]
    if self.learned_positions:
      pos_embed = self.param("pos_embed", lambda _: positions.with_cls(table))
      cls = cls + pos_embed[:, :1].astype(self.dtype)
      table = pos_embed[0, 1:]
    x = x + table.astype(self.dtype)
    x = jnp.concatenate([cls, x], axis=1)
    stack = transformer.Stack(
      self.depth,
      self.heads,
      self.mlp_dim,
      self.dtype,
      self.remat,
      self.unroll,
      norm_eps=self.norm_eps,
      activation=self.activation,
      part_bytes=self.part_bytes,
      name="stack",
    )
    x = transformer.layer_norm("norm", self.norm_eps)(stack(x))[:, 1:]
    # In float32, as the loss: rounded predictions would be its noise.
    return transformer.dense(self.target_dim, jnp.float32, "pred")(x)


class MaskedAutoencoder(nn.Module):
  """MAE: hides most patches and reconstructs them (He et al. 2021).

  Attributes:
    encoder: the encoder that is kept after pre-training.
    decoder: the decoder that is thrown away.
    target: what is to be predicted of a patch.
    mask_ratio: share of patches hidden.
    mask: how patches to hide are chosen.
    loss: what an error costs, a name in `losses.PIXEL_LOSSES`.
    loss_on: of which patches, a name in `losses.LOSS_REGIONS`.
    terms: what else costs: names, weights and the terms.
  """

  encoder: Encoder
  decoder: Decoder
  target: targets.Target
  mask_ratio: float = 0.75
  mask: masking.Strategy = masking.random_noise
  loss: str = "mse"
  loss_on: str = "masked"
  terms: tuple[tuple[str, float, AuxiliaryLoss], ...] = ()

  def __call__(self, images: jax.Array, noise: Any = None) -> MaeOutput:
    """Masks, encodes, decodes and scores.

    Args:
      images: [B, H, W, C], normalized.
      noise: [B, L] that decides the mask, see `draw`; drawn from the "mask"
        stream if None.
    """
    if noise is None:
      noise = self.draw(self.make_rng("mask"), images.shape)
    tokens, masked = self.forward_encoder(images, noise)
    pred = self.forward_decoder(tokens, masked)
    loss = self.forward_loss(images, pred, masked.mask)
    parts = self.forward_terms(images, pred, masked)
    total = loss + sum(weight * parts[name] for name, weight, _ in self.terms)
    if parts:
      parts = {"reconstruction": loss, **parts}
    return MaeOutput(total, parts, pred, masked.mask)

  @nn.nowrap
  def num_shown(self, length: int) -> int:
    """Of L patches, how many tokens the encoder sees."""
    return masking.num_kept(length, self.mask_ratio)

  @nn.nowrap
  def draw(self, key: jax.Array, shape: tuple[int, ...]) -> Any:
    """Draws what decides the masks of images [B, H, W, C]: noise [B, L]."""
    grid = patchify.grid_size(shape[1:3], self.encoder.patch_size)
    num_keep = masking.num_kept(grid[0] * grid[1], self.mask_ratio)
    return self.mask(key, shape[0], grid, num_keep)

  @nn.nowrap
  def choose(self, images: jax.Array, noise: jax.Array) -> masking.Masking:
    """What noise [B, L] hides of images [B, H, W, C]."""
    grid = patchify.grid_size(images.shape[1:3], self.encoder.patch_size)
    shape = (images.shape[0], grid[0] * grid[1])
    if noise.shape != shape:
      raise ValueError(f"noise has shape {noise.shape}, the patches {shape}")
    num_keep = masking.num_kept(shape[1], self.mask_ratio)
    return masking.random_masking(noise, num_keep)

  def forward_encoder(
    self, images: jax.Array, noise: Any
  ) -> tuple[Tokens, masking.Masking]:
    """[B, H, W, C] -> tokens of what is shown, and what was hidden."""
    masked = self.choose(images, noise)
    return self.forward_visible(images, masked), masked

  def forward_visible(
    self, images: jax.Array, masked: masking.Masking
  ) -> Tokens:
    """[B, H, W, C] and what to hide of them -> tokens of K visible patches."""
    return self.encoder(images, masked)

  def forward_decoder(
    self, tokens: Tokens, masked: masking.Masking
  ) -> jax.Array:
    """Tokens and what was hidden -> predictions [B, L, T]."""
    return self.decoder(tokens, masked)

  def reconstruct(
    self, images: jax.Array, masked: masking.Masking
  ) -> jax.Array:
    """[B, H, W, C] and what to hide of them -> predicted patches [B, L, P]."""
    tokens = self.forward_visible(images, masked)
    return self.to_patches(self.forward_decoder(tokens, masked))

  def to_patches(self, pred: jax.Array) -> jax.Array:
    """Predictions [B, L, T] as patches [B, L, P], in the target's scale."""
    return self.target.to_patches(pred)

  def forward_loss(
    self, images: jax.Array, pred: jax.Array, mask: jax.Array
  ) -> jax.Array:
    """What the predictions cost, see `losses.reconstruction`."""
    target = self.forward_target(images)
    return losses.reconstruction(pred, target, mask, self.loss, self.loss_on)

  def forward_terms(
    self, images: jax.Array, pred: jax.Array, masked: masking.Masking
  ) -> dict[str, jax.Array]:
    """What else they cost, by name, each without its weight."""
    return {
      name: term(pred, self.forward_target(images), masked)
      for name, _, term in self.terms
    }

  def forward_target(self, images: jax.Array) -> jax.Array:
    """[B, H, W, C] -> what is to be predicted of them, [B, L, T]."""
    return self.target(patchify.patchify(images, self.encoder.patch_size))

  def features(self, images: jax.Array) -> Tokens:
    """Deterministic tokens of all patches: nothing is hidden."""
    return self.encoder(images)


def apply_variables(params: Mapping[str, Any]) -> dict[str, Any]:
  """What `MaskedAutoencoder.apply` takes, out of parameters by role."""
  learned = {role: params[role] for role in [targets.FITTED] if role in params}
  return {"params": params["model"], **learned}


def _prepend(token: jax.Array, x: jax.Array) -> jax.Array:
  """[1, 1, D] and [B, N, D] -> [B, 1 + N, D]."""
  token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, x.shape[2]))
  return jnp.concatenate([token, x], axis=1)
