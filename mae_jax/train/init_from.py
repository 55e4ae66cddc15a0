"""Loads the parameters that a new run starts from (`init_from`)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mae_jax import checkpoints, conversion
from mae_jax.config import Config, ModelConfig, ObjectiveConfig
from mae_jax.models import (
  architecture,
  classifiers,
  factory,
  mae,
  patchify,
  pos_embed,
  resize_patches,
  targets,
)
from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError

_ROUNDING = 1e-6  # tolerance for sin-cos tables


def adaptable_channels(config: Config) -> int | None:
  """Returns the channels to adapt patches to, or None without `init_adapt`."""
  return config.data.channels if config.init_adapt else None


def load_encoder(
  path: epath.PathLike,
  like: Any,
  mesh: Mesh,
  grid: tuple[int, int],
  encoder: mae.Encoder,
  overrides: conversion.ModelOverrides = conversion.NO_OVERRIDES,
  *,
  channels: int | None = None,
) -> Any:
  """Loads the encoder of a pre-trained or fine-tuned checkpoint.

  Averaged parameters are preferred. Positions come from the checkpoint, or are
  the sin-cos table if it has none; they are interpolated for another grid of
  patches. A final norm is left out if the network has none.

  Args:
    path: a workdir, a checkpoint, or weights.
    like: the encoder's tree, of ShapeDtypeStructs with shardings.
    mesh: the devices.
    grid: rows and columns of patches.
    encoder: the network of the new run.
    overrides: facts about the checkpoint's network that it may not state.
    channels: adapt patches to this number of channels; None not to adapt.

  Returns:
    The parameters, a tree like `like`.

  Raises:
    ConfigError: if there is no checkpoint, it is damaged, or its encoder is of
      another architecture.
  """
  overrides = dataclasses.replace(overrides, no_decoder=True)
  params, run = conversion.load_any(path, mesh, overrides)
  check_network(path, run, encoder, adapted=channels is not None)
  _warn_pixels(path, run, overrides)
  found = dict(classifiers.inference_params(params)["encoder"])
  if channels is not None:
    found = _embedding(found, run.config, encoder.patch_size, channels)
  if "norm" not in like:
    found.pop("norm", None)
  elif "norm" not in found:
    raise ConfigError(
      f"the encoder of {path} was fine-tuned with mean pooling and has no "
      "final norm, which is needed here: start from the pre-trained one, or "
      "fine-tune with --config.classify.pooling=mean"
    )
  if "pos_embed" in like:
    found["pos_embed"] = _positions(found, run.config, grid)
  _check_channels(path, found, like, encoder)
  checkpoints.check_shapes(path, {"encoder": found}, {"encoder": like})
  return jax.tree.map(
    lambda leaf, to: jax.device_put(leaf, to.sharding), found, dict(like)
  )


def load_autoencoder(
  path: epath.PathLike,
  like: Any,
  mesh: Mesh,
  model: mae.MaskedAutoencoder,
  overrides: conversion.ModelOverrides,
  objective: ObjectiveConfig,
  *,
  channels: int | None = None,
) -> Any:
  """Loads encoder and decoder of a pre-trained checkpoint.

  Args:
    path: a workdir, a checkpoint, or weights.
    like: the parameters by role, ShapeDtypeStructs with shardings.
    mesh: the devices.
    model: the network of the new run.
    overrides: facts about the checkpoint's network that it may not state.
    objective: the objective of the new run.
    channels: adapt patches to this number of channels; None not to adapt.

  Returns:
    The network's parameters. Other roles, such as a discriminator, are left
    out.

  Raises:
    ConfigError: if there is no checkpoint, it is damaged, or of another
      network.
  """
  params, run = conversion.load_any(path, mesh, overrides)
  found = dict(params[classifiers.MODEL])
  if "decoder" not in found:
    raise ConfigError(
      f"{path} has no decoder, which pre-training needs: name weights "
      "that have one (the reference's files whose names end in _full)"
      + _or_from_scratch(objective)
    )
  # Settings that differ are named before shapes are compared.
  _check_objective(path, run.config, params, like, model.encoder, objective)
  check_network(path, run, model.encoder, adapted=channels is not None)
  _warn_pixels(path, run, overrides)
  for part, width in (
    ("encoder", model.encoder.config.width),
    ("decoder", model.decoder.config.width),
  ):
    found[part] = _without_fixed(path, part, found[part], run.config, width)
  if channels is not None:
    size = model.encoder.patch_size
    found["encoder"] = _embedding(found["encoder"], run.config, size, channels)
    if targets.FITTED not in params:
      found["decoder"] = _prediction(
        found["decoder"], run.config, size, channels
      )
    _warn_frozen(path, run.config, size, channels, objective)
  _check_decoder(path, run.config.model, model.decoder)
  _warn_objective(path, run.config.objective, objective)
  _check_channels(
    path, found["encoder"], like[classifiers.MODEL]["encoder"], model.encoder
  )
  found = {classifiers.MODEL: found}
  if targets.FITTED in like:
    found[targets.FITTED] = params[targets.FITTED]
  checkpoints.check_shapes(path, found, {role: like[role] for role in found})
  return jax.tree.map(
    lambda leaf, to: jax.device_put(leaf, to.sharding),
    found,
    {role: dict(like[role]) for role in found},
  )


def _check_decoder(
  path: epath.PathLike, before: ModelConfig, decoder: mae.Decoder
) -> None:
  """Checks that two decoders have the same architecture.

  Raises:
    ConfigError: with the settings that differ.
  """
  wrong = [
    name
    for name in architecture.DIMS
    if _decoder_dim(before, name) != getattr(decoder.config, name)
  ]
  if wrong:
    found = {f"model.decoder_{x}": _decoder_dim(before, x) for x in wrong}
    there = " ".join(f"{name}={value}" for name, value in found.items())
    here = ", ".join(str(getattr(decoder.config, name)) for name in wrong)
    raise ConfigError(
      f"the decoder of {path} has {there}, not {here}: set "
      + " ".join(_flag(name, value) for name, value in found.items())
    )


def _decoder_dim(config: ModelConfig, name: str) -> int:
  value: int = getattr(config, f"decoder_{name}")
  return value or 4 * config.decoder_width  # the default of decoder_mlp_dim


def _check_objective(
  path: epath.PathLike,
  config: Config,
  params: Any,
  like: Any,
  encoder: mae.Encoder,
  now: ObjectiveConfig,
) -> None:
  """Refuses a decoder that was trained to predict something else.

  Raises:
    ConfigError: with the setting.
  """
  before = config.objective
  if (targets.FITTED in params) != (targets.FITTED in like):
    raise ConfigError(
      f"{path} was trained with objective.target={before.target}, and its "
      "decoder predicts something else: set "
      f"--config.objective.target={before.target}{_or_from_scratch(now)}"
    )
  token = "encoder_mask_token"
  if (token in params[classifiers.MODEL]) != (token in like[classifiers.MODEL]):
    raise ConfigError(
      f"{path} was trained with objective.masked_input={before.masked_input}, "
      "which has other parameters: set "
      f"--config.objective.masked_input={before.masked_input}"
      f"{_or_from_scratch(now)}"
    )
  if targets.FITTED not in like:
    return
  old, size = _patch(config), encoder.patch_size
  if old != resize_patches.Patch(
    *size, _channels(like[classifiers.MODEL]["encoder"], size)
  ):
    raise ConfigError(
      f"{path} was trained with objective.target={before.target}, fitted to "
      f"patches of {old.height} x {old.width} x {old.channels}, which cannot "
      f"be adapted: set {_flag('model.patch_size', old[:2])} "
      f"{_flag('data.channels', old.channels)}{_or_from_scratch(now)}"
    )
  if before.pca_components != now.pca_components:
    raise ConfigError(
      f"{path} was trained with objective.pca_components="
      f"{before.pca_components}, not {now.pca_components}: set "
      f"{_flag('objective.pca_components', before.pca_components)}"
      f"{_or_from_scratch(now)}"
    )


def _or_from_scratch(objective: ObjectiveConfig) -> str:
  """Returns another way out, except for a frozen encoder."""
  if objective.trainable == "decoder":
    return ""
  return ", or leave init_from empty to start from scratch"


def _warn_frozen(
  path: epath.PathLike,
  config: Config,
  patch_size: tuple[int, int],
  channels: int,
  objective: ObjectiveConfig,
) -> None:
  """Warns of an encoder that is adapted and then frozen."""
  changed = _patch(config) != resize_patches.Patch(*patch_size, channels)
  if changed and objective.trainable == "decoder" and jax.process_index() == 0:
    console.warn(
      f"the encoder of {path} is adapted to other patches and then not "
      "trained, because of objective.trainable='decoder': to train it, set "
      "--config.objective.trainable=all"
    )


def _warn_objective(
  path: epath.PathLike, before: ObjectiveConfig, now: ObjectiveConfig
) -> None:
  """Warns of a decoder of the same shape with another objective."""
  for name in ("target", "masked_input"):
    old, new = getattr(before, name), getattr(now, name)
    if old != new and jax.process_index() == 0:
      console.warn(
        f"{path} was trained with objective.{name}={old}, and this run uses "
        f"{new}: if that is a mistake, set --config.objective.{name}={old}"
      )


def _without_fixed(
  path: epath.PathLike,
  part: str,
  params: Any,
  config: Config,
  width: int,
) -> Any:
  """Removes a position table that is the sin-cos one up to rounding."""
  if "pos_embed" not in params:
    return params
  table = np.asarray(jax.device_get(params["pos_embed"]))
  fixed = np.asarray(
    pos_embed.with_cls(pos_embed.sincos_2d(_grid(config), width))
  )
  if table.shape != fixed.shape or not np.allclose(table, fixed, 0, _ROUNDING):
    raise ConfigError(
      f"{path}: its {part} has positions other than the sin-cos table, the "
      "only one that pre-training uses: fine-tune it, or convert it with "
      "--positions=sincos (python -m mae_jax convert)"
    )
  return {name: leaf for name, leaf in params.items() if name != "pos_embed"}


def check_network(
  path: epath.PathLike,
  run: checkpoints.CheckpointMetadata,
  encoder: mae.Encoder,
  *,
  adapted: bool = False,
) -> None:
  """Checks that two encoders have the same architecture.

  Patches may differ if they are adapted.

  Raises:
    ConfigError: if they differ.
  """
  changes = architecture.diff(factory.encoder(run.config), encoder)
  if adapted:
    changes.pop("patch_size", None)
  if changes:
    found = ", ".join(
      f"model.{name}={old}, not {new}" for name, (old, new) in changes.items()
    )
    flags = " ".join(
      _flag(f"model.{name}", old) for name, (old, _) in changes.items()
    )
    raise ConfigError(
      f"the encoder of {path} has {found}: set {flags}"
      + (
        ", or --config.init_adapt=true" if [*changes] == ["patch_size"] else ""
      )
    )


def _flag(name: str, value: Any) -> str:
  """Formats a flag, without brackets that a shell would interpret."""
  several = isinstance(value, tuple)
  text = ",".join(map(str, value)) if several else str(value)
  return f"--config.{name}={text}"


def _warn_pixels(
  path: epath.PathLike,
  run: checkpoints.CheckpointMetadata,
  overrides: conversion.ModelOverrides,
) -> None:
  """Warns if pixels are normalized differently than in the checkpoint."""
  data = run.config.data
  old = {"mean": data.mean, "std": data.std}
  new = {"mean": overrides.mean, "std": overrides.std}
  if any(value is None for value in new.values()) or all(
    _per_channel(old[x], data.channels) == _per_channel(new[x], data.channels)
    for x in old
  ):
    return
  if jax.process_index() == 0:
    flags = " ".join(_flag(f"data.{name}", old[name]) for name in old)
    console.warn(
      f"{path} was trained with pixels of mean {old['mean']} and std "
      f"{old['std']}, and this run has {new['mean']} and {new['std']}: if that "
      f"is a mistake, set {flags}"
    )


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
  return tuple(values) * (channels if len(values) == 1 else 1)


def _check_channels(
  path: epath.PathLike, found: Any, like: Any, encoder: mae.Encoder
) -> None:
  old, new = (_channels(tree, encoder.patch_size) for tree in (found, like))
  if old != new:
    raise ConfigError(
      f"the encoder of {path} has data.channels={old}, not {new}: set "
      f"--config.data.channels={old}, with as many numbers in data.mean and "
      "data.std, or --config.init_adapt=true"
    )


def _channels(encoder: Any, patch_size: tuple[int, int]) -> int:
  """Returns the number of channels of an encoder's images."""
  rows: int = encoder["patch_embed"]["kernel"].shape[0]
  return rows // math.prod(patch_size)


def _positions(
  encoder: Any, config: Config, grid: tuple[int, int]
) -> np.ndarray:
  """Returns the checkpoint's positions on the new grid, [1, 1 + L, D]."""
  before = _grid(config)
  if "pos_embed" in encoder:
    table = np.asarray(jax.device_get(encoder["pos_embed"]))
  else:
    own = encoder["cls_token"].shape[-1]
    table = np.asarray(pos_embed.with_cls(pos_embed.sincos_2d(before, own)))
  resized = pos_embed.resize(table[:, 1:], before, grid)
  return np.concatenate([table[:, :1], resized], axis=1)


def _grid(config: Config) -> tuple[int, int]:
  return patchify.grid_size(
    config.data.image_size, factory.encoder(config).patch_size
  )


def _patch(config: Config) -> resize_patches.Patch:
  return resize_patches.Patch(
    *factory.encoder(config).patch_size, config.data.channels
  )


def _gathered(array: jax.Array) -> np.ndarray:
  """Returns a whole array, whose parts other processes may hold."""
  return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def _from_first_process(array: np.ndarray) -> Any:
  """Returns the first process's array, because hosts may round differently."""
  return multihost_utils.broadcast_one_to_all(array)


def _embedding(
  encoder: Any,
  config: Config,
  patch_size: tuple[int, int],
  channels: int,
) -> dict[str, Any]:
  """Adapts the patch embedding of an encoder to other patches."""
  old, new = _patch(config), resize_patches.Patch(*patch_size, channels)
  embed = dict(encoder["patch_embed"])
  embed["kernel"] = _from_first_process(
    resize_patches.embedding(_gathered(embed["kernel"]), old, new)
  )
  return {**encoder, "patch_embed": embed}


def _prediction(
  decoder: Any,
  config: Config,
  patch_size: tuple[int, int],
  channels: int,
) -> dict[str, Any]:
  """Adapts the prediction layer of a decoder to other patches."""
  old, new = _patch(config), resize_patches.Patch(*patch_size, channels)
  pred = {
    name: _from_first_process(
      resize_patches.prediction(_gathered(values), old, new)
    )
    for name, values in decoder["pred"].items()
  }
  return {**decoder, "pred": pred}
