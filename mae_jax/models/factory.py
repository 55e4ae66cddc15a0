"""Builds networks from a config, and checks that its sizes fit together."""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from mae_jax.config import Config, DataConfig, ModelConfig, lookup
from mae_jax.models import (
  architecture,
  discriminator,
  losses,
  mae,
  masked_input,
  masking,
  patchify,
  targets,
  transformer,
  vit,
)
from mae_jax.utils.errors import ConfigError

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Above this, the position table alone would fill the host's memory.
MAX_PATCHES = 2**20
# Platforms of exported programs: one for all devices, and one for runtimes
# whose operators include erf.
ANY_PLATFORM, ONNX = "anywhere", "onnx"
# Default bound on attention logits in MB. Measured on CPU with ViT-B's decoder
# and 16 images: 55 ms with chunks of 2 MB, 47 ms with 5 MB, 53 ms with 10 MB,
# 80 ms unbounded. On accelerators chunks only save memory and cost traffic; no
# recipe reaches this bound.
_CPU_ATTENTION_MB = 6
_ATTENTION_MB = 2048


def masked_autoencoder(
  config: Config, platform: str = "cpu"
) -> mae.MaskedAutoencoder:
  """Builds the network of a pre-training run.

  Args:
    config: the run's settings.
    platform: "cpu", "gpu", "tpu", ANY_PLATFORM or ONNX. It sets defaults of
      speed and memory, never a parameter.

  Raises:
    ConfigError: if sizes do not fit together.
  """
  model = config.model
  encoder = _build_encoder(config, platform)
  decoder = architecture.Dims(
    width=model.decoder_width,
    depth=model.decoder_depth,
    heads=model.decoder_heads,
    mlp_dim=model.decoder_mlp_dim or 4 * model.decoder_width,
  )
  _check_dims(decoder, "model.decoder_")
  grid = _checked_grid(config, encoder.patch_size)
  objective = config.objective
  for name, table in (
    ("loss", losses.PIXEL_LOSSES),
    ("loss_on", losses.LOSS_REGIONS),
  ):
    value = getattr(objective, name)
    lookup(table, value, f"objective.{name}")
  target = _target(config, math.prod(encoder.patch_size) * config.data.channels)
  build = lookup(
    masked_input.MASKED_INPUTS, objective.masked_input, "objective.masked_input"
  )
  network = build(
    encoder=encoder,
    decoder=mae.Decoder(
      _transformer_config(config, decoder, platform),
      grid=grid,
      target_dim=target.dim,
    ),
    target=target,
    mask_ratio=objective.mask_ratio,
    mask=_mask_strategy(config, objective.mask, "mask"),
    loss=objective.loss,
    loss_on=objective.loss_on,
    auxiliary_losses=losses.auxiliary(config),
  )
  _check_masks(network, config)
  return network


def mask_variants(
  network: mae.MaskedAutoencoder, config: Config
) -> list[list[mae.MaskedAutoencoder]]:
  """Builds the network for each mask ratio and strategy of training.

  Raises:
    ConfigError: if a mask cannot be built.
  """
  objective = config.objective
  ratios = objective.mask_ratios or (objective.mask_ratio,)
  strategies = [
    _mask_strategy(config, name, "mask_strategies")
    for name in objective.mask_strategies
  ] or [network.mask]
  found = [
    [network.clone(mask_ratio=ratio, mask=strategy) for strategy in strategies]
    for ratio in ratios
  ]
  several = "mask_ratios" if objective.mask_ratios else "mask_ratio"
  for each in itertools.chain(*found):
    _check_masks(each, config, several)
  return found


def _target(config: Config, patch_dim: int) -> targets.Target:
  objective = config.objective
  build = lookup(targets.TARGETS, objective.target, "objective.target")
  if (objective.masked_input, objective.loss_on, objective.target) == (
    "pixel_noise",
    "masked",
    "pca",
  ):
    raise ConfigError(
      "objective.masked_input='pixel_noise' masks single pixels, and "
      "objective.target='pca' cannot score parts of patches: set "
      "objective.loss_on='all', or objective.masked_input='noise' to mask "
      "whole patches"
    )
  with _name_settings_in_errors():
    return build(patch_dim, objective.pca_components)


def build_discriminator(config: Config) -> discriminator.Discriminator:
  """Builds the discriminator of a pre-training run."""
  settings, size = config.discriminator, config.data.image_size
  build = lookup(
    discriminator.DISCRIMINATORS, settings.type, "discriminator.type"
  )
  if 2**settings.depth > min(size):
    raise ConfigError(
      f"discriminator.depth={settings.depth} halves images too often for "
      f"data.image_size={size}: use at most {min(size).bit_length() - 1}"
    )
  return build(settings.width, settings.depth, DTYPES[config.model.dtype])


def _mask_strategy(config: Config, name: str, setting: str) -> masking.Strategy:
  objective, rows = config.objective, config.objective.mask_rows
  if rows and "given" not in (objective.mask, *objective.mask_strategies):
    raise ConfigError(
      "objective.mask_rows defines masks that are not used: set "
      "objective.mask='given'"
    )
  known = masking.STRATEGIES | {
    "given": functools.partial(masking.given_noise, rows)
  }
  return lookup(known, name, f"objective.{setting}")


def _check_masks(
  network: mae.MaskedAutoencoder,
  config: Config,
  setting: str = "mask_ratio",
) -> None:
  """Checks that such masks exist, without sampling any."""
  shape = (1, *config.data.image_size, config.data.channels)
  length = math.prod(network.decoder.grid)
  with _name_settings_in_errors(mask_ratio=setting):
    try:
      jax.eval_shape(lambda: network.sample_noise(jax.random.key(0), shape))
    except ValueError as error:
      # With several ratios, the message says which.
      ratio = f"mask_ratio={network.mask_ratio}"
      text = str(error)
      raise ValueError(text if ratio in text else f"{ratio}: {text}") from None
    num_masked = length - masking.num_kept(length, network.mask_ratio)
    for _, _, loss in network.auxiliary_losses:
      loss.check(num_masked, config.data.batch_size)


def classifier(
  config: Config, num_classes: int, platform: str = "cpu"
) -> vit.VisionTransformer:
  """Builds the network of a fine-tuning run for `num_classes` classes."""
  settings = config.classify
  lookup(vit.POOLINGS, settings.pooling, "classify.pooling")
  built = encoder(config, platform)
  frozen = vit.num_frozen_blocks(settings.trainable, built.config.depth)
  return vit.VisionTransformer(
    built.clone(
      config=dataclasses.replace(built.config, frozen=frozen),
      final_norm=settings.pooling == "cls",
    ),
    num_classes,
    pooling=settings.pooling,
    head_std=settings.head_std,
  )


def encoder(config: Config, platform: str = "cpu") -> mae.Encoder:
  """Builds the encoder of a labeled task, with learned positions."""
  built = _build_encoder(config, platform)
  _checked_grid(config, built.patch_size)
  return built.clone(learned_positions=True)


def with_computation[Network: (mae.Encoder, mae.Decoder)](
  network: Network, config: Config, platform: str
) -> Network:
  """Returns `network` with another config's settings of speed and precision.

  Args:
    network: the network; it keeps its parameters and sizes.
    config: gives dtype, rematerialization and the like; its sizes are ignored.
    platform: as in `masked_autoencoder`.
  """
  changes = _computation_settings(config.model, network.config.depth, platform)
  return network.clone(config=dataclasses.replace(network.config, **changes))


def _build_encoder(config: Config, platform: str) -> mae.Encoder:
  model = config.model
  named, square = architecture.parse(model.variant)
  given = {name: getattr(model, name) for name in architecture.DIMS}
  dims = dataclasses.replace(
    named, **{name: x for name, x in given.items() if x is not None}
  )
  _check_dims(dims, "model.")
  _check_pixels(config.data)
  return mae.Encoder(
    _transformer_config(config, dims, platform),
    patch_size=model.patch_size or (square, square),
  )


def _transformer_config(
  config: Config, dims: architecture.Dims, platform: str
) -> transformer.TransformerConfig:
  return transformer.TransformerConfig(
    **dataclasses.asdict(dims),
    norm_eps=config.model.norm_eps,
    **_computation_settings(config.model, dims.depth, platform),
  )


def _computation_settings(
  model: ModelConfig, depth: int, platform: str
) -> dict[str, Any]:
  """Returns the fields of TransformerConfig that change no parameter."""
  dtype = lookup(DTYPES, model.dtype, "model.dtype")
  # Compiled for TPUs, saving only matrix products takes a third of the memory
  # and half of the traffic of saving everything.
  remat = {"auto": "none" if platform == "cpu" else "dots"}.get(
    model.remat, model.remat
  )
  lookup(
    dict.fromkeys(["auto", *transformer.REMAT_POLICIES]), remat, "model.remat"
  )
  # Measured: on CPU a rolled scan is 11-17 % slower; on accelerators unrolling
  # doubles compile time.
  unroll = model.unroll or (depth if platform == "cpu" else 1)
  activation = model.activation
  lookup(transformer.ACTIVATIONS, activation, "model.activation")
  chunk_mb = model.attention_chunk_mb
  if chunk_mb is None:
    chunk_mb = _CPU_ATTENTION_MB if platform == "cpu" else _ATTENTION_MB
  if platform in (ANY_PLATFORM, ONNX):
    # No chunks: their number depends on the batch size, which is unknown.
    # Unrolled, ViT-B on CPU copies all weights while it runs (temporaries of
    # 330 MB instead of 30), compiles four times as long, and is no faster.
    remat, unroll, chunk_mb = "none", 1, 0
  if platform == ANY_PLATFORM:
    portable = transformer.PORTABLE_ACTIVATIONS
    activation = portable.get(activation, activation)
  return {
    "dtype": dtype,
    "remat": remat,
    "unroll": unroll,
    "activation": activation,
    "chunk_bytes": math.ceil(1e6 * chunk_mb),
  }


@contextlib.contextmanager
def _name_settings_in_errors(**renamed: str) -> Iterator[None]:
  """Turns a model's ValueError into a ConfigError that names settings."""
  try:
    yield
  except ValueError as error:
    text = str(error)
    for section, name in (
      ("data", "image_size"),
      ("model", "patch_size"),
      ("objective", "mask_ratio"),
      ("objective", "mask_rows"),
      ("objective", "pca_components"),
      ("objective", "target"),
      ("objective", "contrast_patches"),
    ):
      setting = renamed.get(name, name)
      text = text.replace(f"{name}=", f"{section}.{setting}=")
    raise ConfigError(text) from None


def _checked_grid(
  config: Config, patch_size: tuple[int, int]
) -> tuple[int, int]:
  with _name_settings_in_errors():
    grid = patchify.grid_size(config.data.image_size, patch_size)
  if grid[0] * grid[1] > MAX_PATCHES:
    raise ConfigError(
      f"data.image_size={config.data.image_size} and model.patch_size="
      f"{patch_size} give {grid[0] * grid[1]} patches, more than "
      f"{MAX_PATCHES}: use larger patches or smaller images"
    )
  return grid


def _check_pixels(data: DataConfig) -> None:
  # Three means would turn a gray image into a color one, by broadcasting.
  for name in ("mean", "std"):
    values = getattr(data, name)
    if len(values) not in (1, data.channels):
      raise ConfigError(
        f"data.{name}={values} has {len(values)} values for "
        f"data.channels={data.channels}: give one value, or one per channel"
      )


def _check_dims(dims: architecture.Dims, prefix: str) -> None:
  for name, value in dataclasses.asdict(dims).items():
    if value < 1:
      raise ConfigError(f"{prefix}{name}={value} must be positive")
  if dims.width % 4:
    raise ConfigError(
      f"{prefix}width={dims.width} is not a multiple of 4, which sin-cos "
      f"positions need; use {dims.width // 4 * 4 + 4}"
    )
  if dims.width % dims.heads:
    divisors = [n for n in range(1, dims.width + 1) if dims.width % n == 0]
    near = sorted(divisors, key=lambda n: abs(n - dims.heads))[:2]
    raise ConfigError(
      f"{prefix}heads={dims.heads} does not divide {prefix}width={dims.width}; "
      f"the nearest divisors are {' and '.join(map(str, near))}"
    )
