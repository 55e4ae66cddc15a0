"""Pixels on the device: uint8 to normalised float32 and back."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def normalize(
  images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> jax.Array:
  """[..., C] uint8 -> float32, (x / 255 - mean) / std channel by channel."""
  scaled = images.astype(jnp.float32) / 255
  return (scaled - jnp.asarray(mean)) / jnp.asarray(std)


def denormalize(
  images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> jax.Array:
  """The inverse of `normalize`: [..., C] float32 -> uint8, rounded, clipped."""
  scaled = images * jnp.asarray(std) + jnp.asarray(mean)
  return jnp.clip(jnp.round(scaled * 255), 0, 255).astype(jnp.uint8)
