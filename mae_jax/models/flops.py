"""Floating-point operations from formulas, two per multiply-add.

Only matrix products count, as is usual for model flops utilization. A backward
pass counts twice its forward pass; recomputation does not count.
"""

import dataclasses
import math

from mae_jax.models import architecture, mae, vit


def stack(tokens: int, dims: architecture.Dims) -> int:
  """Counts forward flops of a stack of blocks on one sequence of `tokens`."""
  projections = tokens * dims.width * (4 * dims.width + 2 * dims.mlp_dim)
  attention = 2 * tokens * tokens * dims.width
  return 2 * dims.depth * (projections + attention)


def train_step(model: mae.MaskedAutoencoder, channels: int) -> int:
  """Counts forward and backward flops of pre-training on one image."""
  decoder, length = model.decoder, math.prod(model.decoder.grid)
  tokens, width = model.num_encoder_tokens(length), decoder.config.width
  forward = (
    masked_encoder(model, channels)
    + 2 * (1 + tokens) * model.encoder.config.width * width
    + stack(1 + length, decoder.config)
    + 2 * length * width * decoder.target_dim
  )
  return 3 * forward


def masked_encoder(model: mae.MaskedAutoencoder, channels: int) -> int:
  """Counts forward flops of the encoder in pre-training, on one image."""
  grid = model.decoder.grid
  tokens = model.num_encoder_tokens(math.prod(grid))
  return _encoder(model.encoder, grid, channels, tokens)


def classifier_step(
  model: vit.VisionTransformer, grid: tuple[int, int], channels: int
) -> int:
  """Counts forward and backward flops of fine-tuning on one image."""
  config = model.encoder.config
  head = 2 * config.width * model.num_classes
  forward = full_encoder(model.encoder, grid, channels)
  trained = forward
  if config.frozen:
    last = dataclasses.replace(config, depth=config.depth - config.frozen)
    trained = stack(1 + math.prod(grid), last)
  return forward + head + 2 * (trained + head)


def full_encoder(
  encoder: mae.Encoder, grid: tuple[int, int], channels: int
) -> int:
  """Counts forward flops of an encoder on all patches of one image."""
  return _encoder(encoder, grid, channels, math.prod(grid))


def _encoder(
  encoder: mae.Encoder, grid: tuple[int, int], channels: int, tokens: int
) -> int:
  """Counts the embedding of all patches, and the blocks on `tokens` of them."""
  patch = math.prod(encoder.patch_size) * channels
  embedding = 2 * math.prod(grid) * patch * encoder.config.width
  return embedding + stack(1 + tokens, encoder.config)
