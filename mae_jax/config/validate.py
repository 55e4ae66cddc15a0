"""Checks a config's types, bounds and names."""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import types
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections

from mae_jax.config.schema import (
  DURATIONS,
  Config,
  Duration,
  EvalConfig,
)
from mae_jax.utils.errors import ConfigError, abbreviate

# Bounds of single settings; of a tuple, of each item.
AT_LEAST: dict[str, float] = {
  "discriminator.b1": 0,
  "discriminator.b2": 0,
  "discriminator.depth": 1,
  "discriminator.gradient_penalty": 0,
  "discriminator.lr": 0,
  "discriminator.ramp": 0,
  "discriminator.weight": 0,
  "discriminator.width": 1,
  "classify.cutmix": 0,
  "classify.drop_path": 0,
  "classify.ema": 0,
  "classify.erasing": 0,
  "classify.head_std": 0,
  "classify.mix_prob": 0,
  "classify.mix_switch": 0,
  "classify.mixup": 0,
  "classify.norm_group": 2,
  "classify.smoothing": 0,
  "label_efficiency.seeds": 1,
  "label_efficiency.shots": 0,
  "data.batch_size": 1,
  "data.channels": 1,
  "data.color_jitter": 0,
  "data.crop_fixed": 0,
  "data.eval_crop": 0.1,  # images are enlarged by its inverse
  "data.image_size": 1,
  "data.record_shards": 1,
  "data.max_unreadable": 0,
  "data.prefetch": 0,
  "data.randaugment": 0,
  "data.randaugment_std": 0,
  "data.shots": 0,
  "data.shots_seed": 0,
  "data.shuffle_buffer": 1,
  "data.std": 1e-6,
  "eval.num_trials": 1,
  "eval.images": 0,
  "eval.knn_k": 1,
  "eval.shots": 0,
  "eval.max_train": 0,
  "mesh.cpu_devices": 0,
  "mesh.fsdp": 1,
  "model.attention_chunk_mb": 0,
  "model.decoder_mlp_dim": 1,
  "model.patch_size": 1,
  "model.unroll": 0,
  "objective.contrast_patches": 0,
  "objective.contrast_temperature": 1e-4,  # below, similarities overflow
  "objective.contrast_weight": 0,
  "objective.mask_ratio": 0,
  "objective.mask_ratios": 0,
  "objective.pca_components": 1,
  "optim.accum_steps": 1,
  "optim.b1": 0,
  "optim.b2": 0,
  "optim.blr": 0,
  "optim.lr": 0,
  "optim.min_lr": 0,
  "optim.weight_decay": 0,
  "train.keep": 1,
  "train.max_bad_steps": 1,
  "train.save_every_minutes": 0,
  "train.seed": 0,
}


ABOVE: dict[str, float] = {
  "eval.knn_temperature": 0,
  "eval.probe_l2": 0,
  "model.norm_eps": 0,
  "train.spike_factor": 1,
  "train.shutdown_timeout": 0,
  "optim.grad_clip": 0,
  "optim.layer_decay": 0,
}


BELOW: dict[str, float] = {
  "discriminator.b1": 1,
  "discriminator.b2": 1,
  "classify.drop_path": 1,
  "classify.ema": 1,
  "classify.smoothing": 1,
  "optim.b1": 1,
  "optim.b2": 1,
}


# Beyond any use, and small enough that the run ends in an error about memory
# rather than never.
AT_MOST: dict[str, float] = {
  "discriminator.depth": 14,
  "discriminator.lr": 1e20,
  "discriminator.ramp": 1,
  "discriminator.width": 2**12,
  "classify.erasing": 1,
  "classify.mix_prob": 1,
  "classify.mix_switch": 1,
  "data.batch_size": 2**20,
  "data.channels": 2**12,
  "data.color_jitter": 1,
  "data.crop_fixed": 1,
  "data.eval_crop": 1,
  "data.image_size": 2**14,
  "data.max_unreadable": 1,
  "data.prefetch": 2**10,
  "data.randaugment": 10,
  "data.randaugment_std": 10,
  "eval.images": 2**12,
  "mesh.cpu_devices": 2**10,
  "model.decoder_depth": 2**10,
  "model.decoder_mlp_dim": 2**18,
  "model.decoder_width": 2**16,
  "model.depth": 2**10,
  "model.mlp_dim": 2**18,
  "model.patch_size": 2**14,
  "model.width": 2**16,
  "objective.mask_ratio": 1,
  "objective.mask_ratios": 1,
  "optim.blr": 1e20,
  "optim.layer_decay": 1,
  "optim.lr": 1e20,
  "optim.min_lr": 1e20,
  "optim.weight_decay": 1e6,
}


# Of all others: JAX counts in int32, makes one random key of seeds that differ
# in higher bits alone, and computes in float32.
LARGEST_INT = 2**31 - 1


LARGEST_FLOAT = 3e38


# Settings of version 0.1 that have another name or another word as value now.
RENAMED_SECTIONS = {"adversary": "discriminator", "compare": "label_efficiency"}
RENAMED = {
  "classify.trained": "classify.trainable",
  "data.lanes": "data.record_shards",
  "data.upright": "data.exif_rotate",
  "discriminator.judges": "discriminator.type",
  "eval.draws": "eval.num_trials",
  "model.attention_mb": "model.attention_chunk_mb",
  "objective.hidden": "objective.masked_input",
  "objective.masks": "objective.mask_strategies",
  "objective.trained": "objective.trainable",
  "objective.varies": "objective.mask_schedule",
  "train.save_minutes": "train.save_every_minutes",
  "train.stop_seconds": "train.shutdown_timeout",
}
RENAMED_VALUES: dict[str, dict[Any, Any]] = {
  "objective.mask_schedule": {"drawn": "random", "staged": "sequential"},
  "task": {"compare": "label_efficiency"},
}


def current_name(name: str) -> str:
  """Returns today's full name of a setting, given today's or an older one."""
  section, dot, key = name.partition(".")
  name = RENAMED_SECTIONS.get(section, section) + dot + key
  return RENAMED.get(name, name)


def current_setting(name: str, value: Any) -> tuple[str, Any]:
  """Returns today's name and value of a setting, given older ones."""
  if name == "objective.norm_pix_loss":
    return "objective.target", "norm_pix" if value else "raw"
  name = current_name(name)
  words = RENAMED_VALUES.get(name, {})
  return name, words.get(value, value) if isinstance(value, str) else value


def from_config_dict(values: Mapping[str, Any]) -> Config:
  """The frozen Config of a ConfigDict, or of a dict read from JSON.

  Raises:
    ConfigError: on an unknown or missing key, a value of the wrong type, or one
      that cannot work whatever the others are.
  """
  if isinstance(values, ml_collections.ConfigDict):
    values = values.to_dict()
  config = _build(Config, values, "config")
  _check_probes(config.eval)
  if (
    config.init_adapt
    and not config.init_from
    and config.task != "label_efficiency"
  ):
    raise ConfigError(
      "init_adapt=True adapts the checkpoint of init_from, which is not set"
    )
  return config


def one_of(key: str, value: str, known: typing.Collection[str]) -> str:
  """A config argument that must be one of a few words.

  Raises:
    ConfigError: if it is none of them.
  """
  if value not in known:
    raise ConfigError(
      f"config argument {key}={value!r} is not known: use {' or '.join(known)}"
    )
  return value


def nearest(name: str, known: typing.Iterable[str]) -> str:
  """The known name that comes closest, or all of them, for an error."""
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=1)
  if close:
    return f"did you mean {close[0]!r}?"
  return f"known are {', '.join(known)}"


def lookup(table: Mapping[str, Any], name: str, field: str) -> Any:
  """`table[name]`, or a ConfigError that lists what there is."""
  if name not in table:
    told, every = nearest(name, table), f"known are {', '.join(sorted(table))}"
    if told != every:  # what is near may be the opposite of what is meant
      told += f" {every}"
    raise ConfigError(f"{field}={abbreviate(name)} is not known: {told}")
  return table[name]


def check_key(key: str) -> None:
  """Refuses what is not the name of a setting, such as "data.batchsize".

  Raises:
    ConfigError: with the nearest name there is.
  """
  kind: Any = Config
  path = "config"
  for name in key.split("."):
    if not dataclasses.is_dataclass(kind):
      raise ConfigError(f"config.{key} is not known: set the whole {path}")
    hints = typing.get_type_hints(kind)
    if name not in hints:
      raise ConfigError(f"{path}.{name} is not known: {_meant(name, hints)}")
    kind, path = hints[name], f"{path}.{name}"
  if dataclasses.is_dataclass(kind):
    one = dataclasses.fields(kind)[0].name
    raise ConfigError(
      f"{path} is a section: set what is in it, for instance {path}.{one}"
    )


def _meant(name: Any, known: typing.Iterable[str]) -> str:
  """As `nearest`, but first the section that has a setting of that name."""
  for section, kind in typing.get_type_hints(Config).items():
    if name in getattr(kind, "__dataclass_fields__", ()):
      return f"did you mean 'config.{section}.{name}'?"
  return nearest(str(name), known)


def _build(cls: type, values: Mapping[str, Any], path: str) -> Any:
  hints = typing.get_type_hints(cls)
  fields = {field.name: field for field in dataclasses.fields(cls)}
  if not isinstance(values, Mapping):
    raise ConfigError(
      f"{path}={abbreviate(values)} is not a section of settings"
    )
  values = dict(_current(path, *item) for item in values.items())
  for key in values:
    if key not in fields:
      key = key if str(key).isprintable() else repr(key)
      raise ConfigError(f"{path}.{key} is not known: {_meant(key, fields)}")
  built = {}
  for name, field in fields.items():
    here = f"{path}.{name}"
    if name not in values:
      if field.default is dataclasses.MISSING:
        raise ConfigError(f"{here} is missing: set it in the config file")
      continue
    kind, value = hints[name], values[name]
    if dataclasses.is_dataclass(kind):
      built[name] = _build(typing.cast(type, kind), value, here)
    else:
      built[name] = _check(kind, value, here)
      _check_bounds(here, built[name])
  return cls(**built)


def _current(path: str, key: Any, value: Any) -> tuple[Any, Any]:
  if not isinstance(key, str):
    return key, value
  prefix = f"{path}.".removeprefix("config.")
  name, value = current_setting(prefix + key, value)
  return name.removeprefix(prefix), value


def _check_bounds(path: str, value: Any) -> None:
  name = path.removeprefix("config.")
  if name in DURATIONS:
    Duration.parse(value, name)
  items = value if isinstance(value, tuple) else (value,)
  for item in items:
    if isinstance(item, str) or item is None:
      continue
    if isinstance(item, float) and not math.isfinite(item):
      raise ConfigError(f"{path}={abbreviate(value)} is not a finite number")
    largest = LARGEST_FLOAT if isinstance(item, float) else LARGEST_INT
    for bound, holds, words in (
      (AT_LEAST.get(name), operator.ge, "at least"),
      (ABOVE.get(name), operator.gt, "above"),
      (BELOW.get(name), operator.lt, "below"),
      (AT_MOST.get(name, largest), operator.le, "at most"),
      (-largest, operator.ge, "at least"),
    ):
      if bound is not None and not holds(item, bound):
        raise ConfigError(f"{path}={abbreviate(value)} must be {words} {bound}")


def _check_probes(settings: EvalConfig) -> None:
  # A probe tells classes apart, and one image is of one class.
  if settings.max_train == 1:
    raise ConfigError(
      "eval.max_train=1 lets a probe see one image and so one class: give it "
      "at least 2, or 0 for all there are"
    )


def _check(kind: Any, value: Any, path: str) -> Any:
  """The value as the declared type; numbers and lists are taken leniently."""
  if isinstance(kind, types.UnionType):  # X | None
    return None if value is None else _check(kind.__args__[0], value, path)
  if typing.get_origin(kind) is tuple:
    item, *rest = typing.get_args(kind)
    items = tuple(value) if isinstance(value, list | tuple) else (value,)
    if item is str:  # a command line takes 1010,1111 for numbers
      items = tuple(str(x) if type(x) is int else x for x in items)
    if Ellipsis not in rest:
      wanted = 1 + len(rest)
      items = items * wanted if len(items) == 1 else items
      if len(items) != wanted:
        raise ConfigError(
          f"{path}={abbreviate(value)} must have {wanted} items"
        )
    return tuple(_check(item, each, path) for each in items)
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    # A whole number may be too large for a float, but not for a message.
    value = float(value) if abs(value) < 2**1023 else math.inf
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise ConfigError(
      f"{path}={abbreviate(value)} is a {type(value).__name__}, not a "
      f"{kind.__name__}"
    )
  return value
