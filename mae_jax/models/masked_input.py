"""Encoder inputs other than MAE's: mask tokens or noise for masked patches.

Each is a MaskedAutoencoder whose encoder processes all L patches. Its encoder
has the parameters of MAE's, so that it can be used in the same way afterwards.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mae_jax.models import mae, masking, patchify


class _FullLengthInput(mae.MaskedAutoencoder):
  """A masked autoencoder whose encoder input has all L patches."""

  @nn.nowrap
  def num_encoder_tokens(self, length: int) -> int:
    """Returns L."""
    return length

  def forward_decoder(
    self, tokens: mae.Tokens, masked: masking.Masking
  ) -> jax.Array:
    """Decodes tokens of all patches, in order, to predictions [B, L, T]."""
    return self.decoder(tokens, masking.no_masking(masked))


class WithMaskTokens(_FullLengthInput):
  """Mask tokens in the encoder, as in BERT (He et al. 2021, table 1c).

  A learned vector replaces each masked patch in the encoder, and the decoder
  has nothing to fill in.
  """

  def setup(self) -> None:
    """Creates the mask token outside the encoder, which is used without it."""
    self.encoder_mask_token = self.param(
      "encoder_mask_token",
      nn.initializers.normal(0.02),
      (1, 1, self.encoder.config.width),
    )

  def forward_visible(
    self, images: jax.Array, masked: masking.Masking
  ) -> mae.Tokens:
    """Encodes [B, H, W, C] with mask tokens to tokens of all L patches."""
    is_masked = masked.mask[:, :, None] > 0  # [B, L, 1]
    token = self.encoder_mask_token

    def replace(x: jax.Array) -> jax.Array:
      return jnp.where(is_masked, token.astype(x.dtype), x)  # [B, L, D]

    return self.encoder(images, replace=replace)


class PatchNoise(_FullLengthInput):
  """Gaussian noise with the images' mean and deviation for masked patches."""

  @nn.nowrap
  def sample_noise(self, key: jax.Array, shape: tuple[int, ...]) -> Any:
    """Samples [B, L], which chooses masks, and pixel noise [B, H, W, C]."""
    keys = jax.random.split(key)
    return super().sample_noise(keys[0], shape), jax.random.normal(
      keys[1], shape
    )

  def forward_encoder(
    self, images: jax.Array, noise: Any
  ) -> tuple[mae.Tokens, masking.Masking]:
    """Encodes [B, H, W, C] with noise; returns the masking too."""
    order, pixels = noise
    masked = self.choose_masking(images, order)
    return self._encode(images, masked.mask, pixels), masked

  def forward_visible(
    self, images: jax.Array, masked: masking.Masking
  ) -> mae.Tokens:
    """Encodes [B, H, W, C] with pixel noise that is always the same."""
    noise = jax.random.normal(jax.random.key(0), images.shape)
    return self._encode(images, masked.mask, noise)

  def _encode(
    self, images: jax.Array, mask: jax.Array, noise: jax.Array
  ) -> mae.Tokens:
    _, height, width, channels = images.shape
    patch_size = self.encoder.patch_size
    values = math.prod(patch_size) * channels
    mask = mask if mask.ndim == 3 else mask[:, :, None]
    mask = jnp.broadcast_to(mask, (*mask.shape[:2], values))
    mask = patchify.unpatchify(mask, patch_size, (height, width))
    return self.encoder(images * (1 - mask) + noise * mask)


class PixelNoise(PatchNoise):
  """Masked pixels, not patches, replaced by noise.

  `mask_ratio` is a fraction of pixels, `mask` chooses pixels, and the loss is
  on masked pixels.
  """

  @nn.nowrap
  def sample_noise(self, key: jax.Array, shape: tuple[int, ...]) -> Any:
    """Samples [B, H * W], which chooses masks, and pixel noise [B, H, W, C]."""
    keys = jax.random.split(key)
    height, width = shape[1:3]
    num_keep = masking.num_kept(height * width, self.mask_ratio)
    order = self.mask(keys[0], shape[0], (height, width), num_keep)
    return order, jax.random.normal(keys[1], shape)

  @nn.nowrap
  def choose_masking(
    self, images: jax.Array, noise: jax.Array
  ) -> masking.Masking:
    """Computes the masking from noise [B, H * W], with a mask [B, L, P]."""
    num_keep = masking.num_kept(noise.shape[1], self.mask_ratio)
    masked = masking.random_masking(noise, num_keep)
    pixels = masked.mask.reshape(*images.shape[:3], 1)
    pixels = jnp.broadcast_to(pixels, images.shape)
    mask = patchify.patchify(pixels, self.encoder.patch_size)
    return dataclasses.replace(masked, mask=mask)


# What the encoder gets instead of masked patches.
MASKED_INPUTS: dict[str, type[mae.MaskedAutoencoder]] = {
  "dropped": mae.MaskedAutoencoder,
  "mask_tokens": WithMaskTokens,
  "noise": PatchNoise,
  "pixel_noise": PixelNoise,
}
