"""Images to patches and back.

Values of a patch are ordered by pixel, channels last, as in the reference. The
kernels of patch embedding and prediction depend on this order.
"""

from collections.abc import Sequence

import einops
import jax
import jax.numpy as jnp


def grid_size(
  image_size: Sequence[int], patch_size: tuple[int, int]
) -> tuple[int, int]:
  """Computes the rows and columns of patches.

  Args:
    image_size: height and width in pixels.
    patch_size: height and width of a patch in pixels.

  Raises:
    ValueError: if a side is not a whole number of patches.
  """
  for side, patch in zip(image_size, patch_size, strict=True):
    if side % patch:
      below = side // patch * patch
      nearest = f"{below} and {below + patch}" if below else f"{patch}"
      raise ValueError(
        f"image_size={side} is not a multiple of patch_size={patch}; "
        f"the nearest are {nearest}"
      )
  return image_size[0] // patch_size[0], image_size[1] // patch_size[1]


def patchify(images: jax.Array, patch_size: tuple[int, int]) -> jax.Array:
  """Splits images into patches, row by row.

  Args:
    images: [B, H, W, C].
    patch_size: height p and width q of a patch.

  Returns:
    [B, L, p * q * C], where L = (H / p) * (W / q).
  """
  grid_size(images.shape[1:3], patch_size)
  p, q = patch_size
  # Merge pixels of a row with their channels: a TPU pads a last axis of 3, or
  # of the grid's size, to nine times the data.
  rows = einops.rearrange(images, "b h w c -> b h (w c)")
  return einops.rearrange(
    rows, "b (h p) (w s) -> b (h w) (p s)", p=p, s=q * images.shape[-1]
  )


def unpatchify(
  patches: jax.Array, patch_size: tuple[int, int], image_size: tuple[int, int]
) -> jax.Array:
  """Joins patches into images: the inverse of `patchify`.

  Args:
    patches: [B, L, p * q * C].
    patch_size: height p and width q of a patch.
    image_size: height H and width W of the images.

  Returns:
    [B, H, W, C].
  """
  h, w = grid_size(image_size, patch_size)
  p, q = patch_size
  return einops.rearrange(
    patches, "b (h w) (p q c) -> b (h p) (w q) c", h=h, w=w, p=p, q=q
  )


def normalize(
  images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> jax.Array:
  """Converts [..., C] uint8 to float32: (x / 255 - mean) / std per channel."""
  scaled = images.astype(jnp.float32) / 255
  return (scaled - jnp.asarray(mean)) / jnp.asarray(std)
