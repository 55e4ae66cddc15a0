"""How patches are hidden from the encoder, other than by leaving them out.

Each is a MaskedAutoencoder whose encoder sees all patches. Its parameters are
those of MAE, so that what is made of the encoder does not tell them apart.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mae_jax.models import mae, masking, patchify


class _FullLengthInput(mae.MaskedAutoencoder):
  """An encoder that is shown something in the place of each hidden patch."""

  @nn.nowrap
  def num_shown(self, length: int) -> int:
    """All."""
    return length

  def forward_decoder(
    self, tokens: mae.Tokens, masked: masking.Masking
  ) -> jax.Array:
    """Tokens of all patches, in order -> predictions [B, L, T]."""
    return self.decoder(tokens, masking.no_masking(masked))


class WithMaskTokens(_FullLengthInput):
  """The design that MAE is compared with, of BERT (He et al. 2021, table 1c).

  The encoder sees one learned vector in the place of each hidden patch, and the
  decoder has nothing to fill in.
  """

  def setup(self) -> None:
    """The vector: not the encoder's, which does without it afterwards."""
    self.encoder_mask_token = self.param(
      "encoder_mask_token",
      nn.initializers.normal(0.02),
      (1, 1, self.encoder.width),
    )

  def forward_visible(
    self, images: jax.Array, masked: masking.Masking
  ) -> mae.Tokens:
    """[B, H, W, C] and what to hide of them -> tokens of all L patches."""
    hidden = masked.mask[:, :, None] > 0  # [B, L, 1]
    token = self.encoder_mask_token

    def hide(x: jax.Array) -> jax.Array:
      return jnp.where(hidden, token.astype(x.dtype), x)  # [B, L, D]

    return self.encoder(images, hide=hide)


class PatchNoise(_FullLengthInput):
  """Hidden patches are noise, of the images' own mean and deviation."""

  @nn.nowrap
  def draw(self, key: jax.Array, shape: tuple[int, ...]) -> Any:
    """Noise that decides the masks, and [B, H, W, C] what is seen there."""
    keys = jax.random.split(key)
    return super().draw(keys[0], shape), jax.random.normal(keys[1], shape)

  def forward_encoder(
    self, images: jax.Array, noise: Any
  ) -> tuple[mae.Tokens, masking.Masking]:
    """[B, H, W, C] -> tokens of all patches, and what was hidden."""
    order, pixels = noise
    masked = self.choose(images, order)
    return self._encode(images, masked.mask, pixels), masked

  def forward_visible(
    self, images: jax.Array, masked: masking.Masking
  ) -> mae.Tokens:
    """As `forward_encoder`; the noise is always the same."""
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
  """The same, but what is hidden are pixels, wherever they are.

  `mask_ratio` is a share of pixels, and `mask` chooses among them; those that
  are hidden cost, not whole patches.
  """

  @nn.nowrap
  def draw(self, key: jax.Array, shape: tuple[int, ...]) -> Any:
    """[B, H * W] that decides the masks, and [B, H, W, C] what is seen."""
    keys = jax.random.split(key)
    height, width = shape[1:3]
    num_keep = masking.num_kept(height * width, self.mask_ratio)
    order = self.mask(keys[0], shape[0], (height, width), num_keep)
    return order, jax.random.normal(keys[1], shape)

  @nn.nowrap
  def choose(self, images: jax.Array, noise: jax.Array) -> masking.Masking:
    """What noise [B, H * W] hides, with a mask [B, L, P] of patches' pixels."""
    num_keep = masking.num_kept(noise.shape[1], self.mask_ratio)
    masked = masking.random_masking(noise, num_keep)
    pixels = masked.mask.reshape(*images.shape[:3], 1)
    pixels = jnp.broadcast_to(pixels, images.shape)
    mask = patchify.patchify(pixels, self.encoder.patch_size)
    return dataclasses.replace(masked, mask=mask)


# What the encoder sees of hidden patches, by name.
MASKED_INPUTS: dict[str, type[mae.MaskedAutoencoder]] = {
  "dropped": mae.MaskedAutoencoder,
  "mask_tokens": WithMaskTokens,
  "noise": PatchNoise,
  "pixel_noise": PixelNoise,
}
