"""Pixels on the device: uint8 to normalised float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def normalize(
  images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> jax.Array:
  """[..., C] uint8 -> float32, (x / 255 - mean) / std channel by channel."""
  scaled = images.astype(jnp.float32) / 255
  return (scaled - jnp.asarray(mean)) / jnp.asarray(std)
