"""Networks out of checkpoints, built as the run that saved them says."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from mae_jax import checkpoints, conversion
from mae_jax.config import Config, leaves
from mae_jax.models import classifiers, factory, mae
from mae_jax.utils import storage
from mae_jax.utils.errors import ConfigError, abbreviate


@dataclasses.dataclass(frozen=True)
class Restored:
  """What a checkpoint holds.

  Attributes:
    params: by role, on the devices.
    run: that saved them.
    encoder: the network that gives features.
    classifier: the same with its head; None if there is none.
  """

  params: dict[str, Any]
  run: checkpoints.CheckpointMetadata
  encoder: mae.Encoder
  classifier: classifiers.Classifier | None

  @property
  def encoder_params(self) -> Any:
    """Those of `encoder`."""
    return classifiers.inference_params(self.params)["encoder"]


def load(
  path: epath.PathLike,
  mesh: Mesh,
  hints: conversion.ModelOverrides = conversion.NO_OVERRIDES,
) -> Restored:
  """Reads a checkpoint of any task, or weights of another program.

  Args:
    path: see `dialects.load_any`.
    mesh: the devices.
    hints: what is known of the network besides.

  Raises:
    ConfigError: if there is no checkpoint, or it is damaged.
  """
  hints = dataclasses.replace(hints, no_decoder=True)
  params, run = conversion.load_any(path, mesh, hints)
  platform = mesh.devices.flat[0].platform
  task = run.config.task
  if task == "pretrain":
    model = factory.encoder(run.config, platform)
    # Weights from elsewhere may have positions of their own.
    own = "pos_embed" in params[classifiers.MODEL]["encoder"]
    return Restored(params, run, model.clone(learned_positions=own), None)
  built = classifiers.CLASSIFIERS[task](
    run.config, len(run.class_names), platform
  )
  like = jax.eval_shape(built.init, jax.random.key(0))
  checkpoints.check_shapes(path, params, like)
  return Restored(params, run, built.encoder, built)


def load_autoencoder(
  path: epath.PathLike,
  mesh: Mesh,
  hints: conversion.ModelOverrides = conversion.NO_OVERRIDES,
) -> tuple[mae.MaskedAutoencoder, Any, checkpoints.CheckpointMetadata]:
  """Reads a checkpoint of pre-training, or such weights of another program.

  Args:
    path: see `dialects.load_any`.
    mesh: the devices.
    hints: what is known of the network besides.

  Returns:
    The network, its variables on the devices, and the run that saved them.

  Raises:
    ConfigError: if there is none, it is damaged, or it has no decoder.
  """
  params, run = conversion.load_any(path, mesh, hints)
  found = params.get(classifiers.MODEL, {})
  if run.config.task != "pretrain" or "decoder" not in found:
    raise ConfigError(
      f"{path} has no decoder, without which nothing is reconstructed: name a "
      "checkpoint of pre-training, or weights that hold both "
      "(mae_pretrain_vit_base_full.pth, or a ViTMAEForPreTraining)"
    )
  model = factory.masked_autoencoder(run.config, mesh.devices.flat[0].platform)
  # Weights from elsewhere may have positions of their own.
  model = model.clone(
    encoder=model.encoder.clone(
      learned_positions="pos_embed" in found["encoder"]
    ),
    decoder=model.decoder.clone(
      learned_positions="pos_embed" in found["decoder"]
    ),
  )
  return model, mae.apply_variables(params), run


def load_classifier(
  path: epath.PathLike,
  mesh: Mesh,
  hints: conversion.ModelOverrides = conversion.NO_OVERRIDES,
) -> Restored:
  """As `load`, where a head is needed.

  Raises:
    ConfigError: also if the checkpoint has no head.
  """
  restored = load(path, mesh, hints)
  if restored.classifier is None:
    raise ConfigError(
      f"{path} has no head: it is of a run of task={restored.run.config.task}. "
      "Fine-tune or probe it first (--config=configs/finetune_vit_b.py "
      f"--config.init_from={path}), and name that run's workdir; what its "
      "features are worth as they are, task=evaluate tells with "
      "--config.eval.measure=features"
    )
  return restored


# What an encoder is. Other settings of models say how they are computed, or
# what a decoder is, which has no part in what is measured.
_ARCHITECTURE = (
  "variant",
  "width",
  "depth",
  "heads",
  "mlp_dim",
  "patch_size",
  "norm_eps",
  "activation",
)
_SHOWN = ("data.image_size", "data.channels", "data.mean", "data.std")


@dataclasses.dataclass(frozen=True)
class Suited:
  """A checkpoint that the config does not contradict.

  Attributes:
    step: its directory.
    found: what it holds.
    config: of its run, with data, evaluation and computation of the given one.
    platform: of the devices.
  """

  step: epath.Path
  found: Restored
  config: Config
  platform: str

  @property
  def facts(self) -> dict[str, Any]:
    """Which one it is, for other programs."""
    return {
      "checkpoint": str(self.step),
      "checkpoint_task": self.found.run.config.task,
    }

  @property
  def encoder(self) -> mae.Encoder:
    """As in `found`, computed as the config says."""
    return factory.with_computation(
      self.found.encoder, self.config, self.platform
    )

  @property
  def classifier(self) -> classifiers.Classifier:
    """Likewise."""
    make = classifiers.CLASSIFIERS[self.found.run.config.task]
    return make(self.config, len(self.found.run.class_names), self.platform)


def locate(config: Config) -> epath.Path:
  """The directory of the checkpoint `init_from`.

  Raises:
    ConfigError: if there is none.
  """
  if not config.init_from:
    raise ConfigError(
      "init_from is empty: set --config.init_from=CHECKPOINT, a workdir or one "
      "of its checkpoints/<step>, to say what is evaluated"
    )
  with storage.os_errors(config.init_from):
    return conversion.locate(config.init_from)


def load_for_evaluation(config: Config, mesh: Mesh, *, head: bool) -> Suited:
  """Reads the checkpoint `init_from`.

  Args:
    config: how it is to be measured.
    mesh: the devices.
    head: whether a head is needed.

  Raises:
    ConfigError: if there is no such checkpoint, or the config contradicts it.
  """
  read = load_classifier if head else load
  # Of a run that goes on, the second reading might find another.
  step = locate(config)
  with storage.os_errors(config.init_from):
    found = read(step, mesh, conversion.ModelOverrides.from_config(config))
  platform = mesh.devices.flat[0].platform
  before = found.run.config
  settings = [*_SHOWN, *(("classify.pooling",) if head else ())]
  if _dimensions(factory.encoder(config, platform)) != _dimensions(
    found.encoder
  ):
    settings += [f"model.{name}" for name in _ARCHITECTURE]
  old, new = dict(leaves(before)), dict(leaves(config))
  wrong = [
    f"{name} is {abbreviate(new[name])}, was {old[name]!r}"
    for name in settings
    if new[name] != old[name]
  ]
  if wrong:
    raise ConfigError(
      f"the checkpoint {step} was trained with other settings: "
      f"{'; '.join(wrong)}. Set each to what it was, or name another checkpoint"
    )
  model = dataclasses.replace(
    before.model,
    dtype=config.model.dtype,
    remat=config.model.remat,
    unroll=config.model.unroll,
    attention_chunk_mb=config.model.attention_chunk_mb,
  )
  merged = dataclasses.replace(
    before, data=config.data, model=model, eval=config.eval
  )
  return Suited(step, found, merged, platform)


def _dimensions(encoder: mae.Encoder) -> tuple[Any, ...]:
  return tuple(
    getattr(encoder, name) for name in _ARCHITECTURE if name != "variant"
  )
