"""Floating-point operations from formulas, two per multiply-add.

Only matrix products count, as is usual for model flops utilization. A backward
pass counts twice its forward pass; recomputation does not count.
"""

from __future__ import annotations

import math

from mae_jax.models import mae, vit


def stack(tokens: int, width: int, depth: int, mlp_dim: int) -> int:
  """Counts forward flops of `depth` blocks on one sequence of `tokens`."""
  projections = tokens * width * (4 * width + 2 * mlp_dim)
  attention = 2 * tokens * tokens * width
  return 2 * depth * (projections + attention)


def train_step(model: mae.MaskedAutoencoder, channels: int) -> int:
  """Counts forward and backward flops of pre-training on one image."""
  encoder, decoder = model.encoder, model.decoder
  length = decoder.grid[0] * decoder.grid[1]
  tokens = model.num_encoder_tokens(length)
  forward = (
    masked_encoder(model, channels)
    + 2 * (1 + tokens) * encoder.width * decoder.width
    + stack(1 + length, decoder.width, decoder.depth, decoder.mlp_dim)
    + 2 * length * decoder.width * decoder.target_dim
  )
  return 3 * forward


def masked_encoder(model: mae.MaskedAutoencoder, channels: int) -> int:
  """Counts forward flops of the encoder in pre-training, on one image."""
  encoder, length = model.encoder, math.prod(model.decoder.grid)
  patch = math.prod(encoder.patch_size) * channels
  tokens = model.num_encoder_tokens(length)
  return 2 * length * patch * encoder.width + stack(
    1 + tokens, encoder.width, encoder.depth, encoder.mlp_dim
  )


def classifier_step(
  model: vit.VisionTransformer, grid: tuple[int, int], channels: int
) -> int:
  """Counts forward and backward flops of fine-tuning on one image."""
  encoder = model.encoder
  head = 2 * encoder.width * model.num_classes
  forward = full_encoder(encoder, grid, channels)
  trained = forward
  if encoder.frozen:
    blocks = encoder.depth - encoder.frozen
    tokens = 1 + grid[0] * grid[1]
    trained = stack(tokens, encoder.width, blocks, encoder.mlp_dim)
  return forward + head + 2 * (trained + head)


def full_encoder(
  encoder: mae.Encoder, grid: tuple[int, int], channels: int
) -> int:
  """Counts forward flops of an encoder on all patches of one image."""
  length = grid[0] * grid[1]
  patch = math.prod(encoder.patch_size) * channels
  embedding = 2 * length * patch * encoder.width
  return embedding + stack(
    1 + length, encoder.width, encoder.depth, encoder.mlp_dim
  )
