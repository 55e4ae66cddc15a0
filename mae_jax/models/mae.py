"""The masked autoencoder: an encoder of visible patches and a light decoder.

Stages carry the reference's names (forward_encoder, forward_decoder,
forward_loss). Encoder and decoder are separate modules, so that fine-tuning
loads `params["encoder"]` and nothing else.
"""

from collections.abc import Callable, Mapping, Sequence
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
  """The encoder's output, with the class token separate.

  Attributes:
    cls: [B, D] the class token.
    patches: [B, K, D] tokens of the encoded patches, in shuffled order.
  """

  cls: jax.Array
  patches: jax.Array


# One vector per image. "all" concatenates the patches: [B, K * D].
POOLINGS: dict[str, Callable[[Tokens], jax.Array]] = {
  "mean": lambda tokens: tokens.patches.mean(axis=1),  # [B, D]
  "cls": lambda tokens: tokens.cls,  # [B, D]
  "all": lambda tokens: tokens.patches.reshape(tokens.patches.shape[0], -1),
}


class AuxiliaryLoss(Protocol):
  """A loss that is added to the reconstruction loss."""

  def __call__(
    self, pred: jax.Array, target: jax.Array, masked: masking.Masking
  ) -> jax.Array:
    """Computes a scalar from predictions and targets [B, L, T] and the mask."""

  def check(self, num_masked: int, batch: int) -> None:
    """Raises ValueError if `num_masked` patches per image are too few."""

  def flops(self, num_masked: int, width: int, batch: int) -> int:
    """Counts a step's flops for one image of B, for targets of `width`."""


@flax.struct.dataclass
class MaeOutput:
  """The losses, predictions and mask of one forward pass.

  Attributes:
    loss: scalar float32, the weighted sum of all losses.
    parts: each loss by name; empty if there is only the reconstruction loss.
    pred: [B, L, T] predictions of patches, float32.
    mask: [B, L] float32, 1 = removed; [B, L, P] if pixels are masked.
  """

  loss: jax.Array
  parts: dict[str, jax.Array]
  pred: jax.Array
  mask: jax.Array


class Encoder(nn.Module):
  """The ViT encoder, of all patches or of the visible ones.

  Attributes:
    config: the dimensions of the blocks, and how to compute them.
    patch_size: height and width of a patch in pixels.
    learned_positions: makes the position table a parameter, "pos_embed" [1, 1 +
      L, D], initialized as sin-cos; the class token has row 0.
    final_norm: applies a LayerNorm to the tokens.
  """

  config: transformer.TransformerConfig
  patch_size: tuple[int, int]
  learned_positions: bool = False
  final_norm: bool = True

  @nn.compact
  def __call__(
    self,
    images: jax.Array,
    masked: masking.Masking | None = None,
    residual_scale: jax.Array | None = None,
    replace: Callable[[jax.Array], jax.Array] = lambda x: x,
    layers: Sequence[int] = (),
  ) -> Any:
    """Encodes images.

    Args:
      images: [B, H, W, C], normalized.
      masked: selects the visible patches; None encodes all, in order.
      residual_scale: [depth, B, 2] from `transformer.drop_path`, or None.
      replace: maps patch embeddings [B, L, D] before positions are added, for
        instance to substitute mask tokens.
      layers: increasing numbers of blocks, from 1, whose tokens are wanted.

    Returns:
      Float32 Tokens. With `layers`, a list of the Tokens after each of them;
      only those of the last block pass the final norm.
    """
    width, dtype = self.config.width, self.config.dtype
    grid = patchify.grid_size(images.shape[1:3], self.patch_size)
    table = jnp.asarray(positions.sincos_2d(grid, width))  # [L, D]
    cls = self.param("cls_token", _TOKEN_INIT, (1, 1, width))
    if self.learned_positions:
      # [1, 1 + L, D]
      pos_embed = self.param("pos_embed", lambda _: positions.with_cls(table))
      cls, table = cls + pos_embed[:, :1], pos_embed[0, 1:]
    x = patchify.patchify(images, self.patch_size).astype(dtype)
    # Dense, not a convolution, so that xavier sees a (p*q*C, D) matrix.
    x = transformer.dense(width, dtype, "patch_embed")(x)
    x = replace(x) + table.astype(dtype)  # before masking
    if masked is not None:
      x = masking.visible_only(x, masked)
    x = _prepend(cls, x)
    stack = transformer.Stack(self.config, name="stack")
    attended = masking.attended(masked)

    def normed(x: jax.Array) -> jax.Array:
      if not self.final_norm:
        return x
      return transformer.layer_norm("norm", self.config.norm_eps)(x)

    if not layers:
      return _split(normed(stack(x, residual_scale, (), attended)))
    *inner, last = stack(x, residual_scale, layers, attended)
    if layers[-1] == self.config.depth:
      last = normed(last)
    return list(map(_split, (*inner, last)))


class Decoder(nn.Module):
  """The light decoder, which predicts the target of every patch.

  Attributes:
    config: the dimensions of the blocks, and how to compute them.
    grid: rows and columns of patches.
    target_dim: T, number of target values per patch.
    learned_positions: as in `Encoder`; "pos_embed" is [1, 1 + L, D].
  """

  config: transformer.TransformerConfig
  grid: tuple[int, int]
  target_dim: int
  learned_positions: bool = False

  @nn.compact
  def __call__(self, tokens: Tokens, masked: masking.Masking) -> jax.Array:
    """Decodes tokens of K visible patches to predictions [B, L, T] float32."""
    width, dtype = self.config.width, self.config.dtype
    embed = transformer.dense(width, dtype, "embed")
    joined = jnp.concatenate([tokens.cls[:, None], tokens.patches], axis=1)
    x = embed(joined.astype(dtype))
    cls, visible = x[:, :1], x[:, 1:]
    mask_token = self.param("mask_token", _TOKEN_INIT, (1, 1, width))
    x = masking.unshuffle(visible, mask_token.astype(dtype), masked)
    table = jnp.asarray(positions.sincos_2d(self.grid, width))  # [L, D]
    if self.learned_positions:
      pos_embed = self.param("pos_embed", lambda _: positions.with_cls(table))
      cls = cls + pos_embed[:, :1].astype(dtype)
      table = pos_embed[0, 1:]
    x = x + table.astype(dtype)
    x = jnp.concatenate([cls, x], axis=1)
    x = transformer.Stack(self.config, name="stack")(x)
    x = transformer.layer_norm("norm", self.config.norm_eps)(x)[:, 1:]
    # Float32, as the loss: rounding predictions would add noise to it.
    return transformer.dense(self.target_dim, jnp.float32, "pred")(x)


class MaskedAutoencoder(nn.Module):
  """MAE: masks most patches and reconstructs them (He et al. 2021).

  Attributes:
    encoder: the encoder, which is used after pre-training.
    decoder: the decoder, which is discarded.
    target: computes the prediction target of a patch.
    mask_ratio: fraction of patches to mask.
    mask: samples the noise that chooses patches.
    loss: a name in `losses.PIXEL_LOSSES`.
    loss_on: a name in `losses.LOSS_REGIONS`.
    auxiliary_losses: names, weights and functions of further losses.
  """

  encoder: Encoder
  decoder: Decoder
  target: targets.Target
  mask_ratio: float = 0.75
  mask: masking.Strategy = masking.random_noise
  loss: str = "mse"
  loss_on: str = "masked"
  auxiliary_losses: tuple[tuple[str, float, AuxiliaryLoss], ...] = ()

  def __call__(self, images: jax.Array, noise: Any = None) -> MaeOutput:
    """Masks, encodes and decodes images, and computes the loss.

    Args:
      images: [B, H, W, C], normalized.
      noise: [B, L] chooses the mask, see `sample_noise`; None samples it from
        the "mask" stream.
    """
    if noise is None:
      noise = self.sample_noise(self.make_rng("mask"), images.shape)
    tokens, masked = self.forward_encoder(images, noise)
    pred = self.forward_decoder(tokens, masked)
    loss = self.forward_loss(images, pred, masked.mask)
    parts = self.forward_auxiliary_losses(images, pred, masked)
    total = loss + sum(
      weight * parts[name] for name, weight, _ in self.auxiliary_losses
    )
    if parts:
      parts = {"reconstruction": loss, **parts}
    return MaeOutput(total, parts, pred, masked.mask)

  @nn.nowrap
  def num_encoder_tokens(self, length: int) -> int:
    """Returns how many tokens of L patches the encoder processes."""
    return masking.num_kept(length, self.mask_ratio)

  @nn.nowrap
  def sample_noise(self, key: jax.Array, shape: tuple[int, ...]) -> Any:
    """Samples noise [B, L] that chooses the masks of images [B, H, W, C]."""
    grid = patchify.grid_size(shape[1:3], self.encoder.patch_size)
    num_keep = masking.num_kept(grid[0] * grid[1], self.mask_ratio)
    return self.mask(key, shape[0], grid, num_keep)

  @nn.nowrap
  def choose_masking(
    self, images: jax.Array, noise: jax.Array
  ) -> masking.Masking:
    """Computes the masking of images [B, H, W, C] from noise [B, L]."""
    grid = patchify.grid_size(images.shape[1:3], self.encoder.patch_size)
    shape = (images.shape[0], grid[0] * grid[1])
    if noise.shape != shape:
      raise ValueError(
        f"noise has shape {noise.shape}, but the patches have shape {shape}"
      )
    num_keep = masking.num_kept(shape[1], self.mask_ratio)
    return masking.random_masking(noise, num_keep)

  def forward_encoder(
    self, images: jax.Array, noise: Any
  ) -> tuple[Tokens, masking.Masking]:
    """Encodes the visible patches of [B, H, W, C]; returns the masking too."""
    masked = self.choose_masking(images, noise)
    return self.forward_visible(images, masked), masked

  def forward_visible(
    self, images: jax.Array, masked: masking.Masking
  ) -> Tokens:
    """Encodes the K visible patches of [B, H, W, C]."""
    return self.encoder(images, masked)

  def forward_decoder(
    self, tokens: Tokens, masked: masking.Masking
  ) -> jax.Array:
    """Decodes tokens to predictions [B, L, T]."""
    return self.decoder(tokens, masked)

  def reconstruct(
    self, images: jax.Array, masked: masking.Masking
  ) -> jax.Array:
    """Predicts patches [B, L, P] of [B, H, W, C] from the visible ones."""
    tokens = self.forward_visible(images, masked)
    return self.to_patches(self.forward_decoder(tokens, masked))

  def to_patches(self, pred: jax.Array) -> jax.Array:
    """Converts predictions [B, L, T] to patches [B, L, P], in target scale."""
    return self.target.to_patches(pred)

  def forward_loss(
    self, images: jax.Array, pred: jax.Array, mask: jax.Array
  ) -> jax.Array:
    """Computes `losses.reconstruction` of the predictions."""
    target = self.forward_target(images)
    return losses.reconstruction(pred, target, mask, self.loss, self.loss_on)

  def forward_auxiliary_losses(
    self, images: jax.Array, pred: jax.Array, masked: masking.Masking
  ) -> dict[str, jax.Array]:
    """Computes the auxiliary losses by name, without their weights."""
    return {
      name: loss(pred, self.forward_target(images), masked)
      for name, _, loss in self.auxiliary_losses
    }

  def forward_target(self, images: jax.Array) -> jax.Array:
    """Computes the prediction target [B, L, T] of images [B, H, W, C]."""
    return self.target(patchify.patchify(images, self.encoder.patch_size))

  def features(self, images: jax.Array) -> Tokens:
    """Encodes all patches, without a mask; deterministic."""
    return self.encoder(images)


def apply_variables(params: Mapping[str, Any]) -> dict[str, Any]:
  """Converts parameters by role to variables for `MaskedAutoencoder.apply`."""
  fitted = {role: params[role] for role in [targets.FITTED] if role in params}
  return {"params": params["model"], **fitted}


def _split(x: jax.Array) -> Tokens:
  """Splits tokens [B, 1 + K, D] into the class token and those of patches."""
  x = x.astype(jnp.float32)
  return Tokens(x[:, 0], x[:, 1:])


def _prepend(token: jax.Array, x: jax.Array) -> jax.Array:
  """Prepends the token [1, 1, D] to [B, N, D]."""
  token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, x.shape[2]))
  return jnp.concatenate([token, x], axis=1)
