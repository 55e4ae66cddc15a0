"""Loads networks from checkpoints, for evaluation and for every tool."""

import dataclasses
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from mae_jax import checkpoints, conversion
from mae_jax.config import Config, leaves
from mae_jax.models import architecture, classifiers, factory, mae
from mae_jax.utils import console, storage
from mae_jax.utils.errors import ConfigError, abbreviate


@dataclasses.dataclass(frozen=True)
class LoadedModel:
  """A checkpoint's network with its parameters, on the way into any use.

  Attributes:
    path: the checkpoint.
    params: parameters by role, on the devices.
    metadata: the run that saved them.
    config: settings that the network is built with: the run's, or with data and
      computation of another config.
    platform: platform of the devices.
    encoder: the network that gives features.
    decoder: the decoder of an autoencoder; None if it was not asked for.
  """

  path: epath.PathLike
  params: dict[str, Any]
  metadata: checkpoints.CheckpointMetadata
  config: Config
  platform: str
  encoder: mae.Encoder
  decoder: mae.Decoder | None = None

  @property
  def class_names(self) -> tuple[str, ...]:
    """Names of the head's classes; () without a head."""
    return tuple(self.metadata.class_names)

  @property
  def has_head(self) -> bool:
    """True for a classifier."""
    return self.metadata.config.task in classifiers.CLASSIFIERS

  @property
  def classifier(self) -> classifiers.Classifier:
    """The encoder with its head."""
    make = classifiers.CLASSIFIERS[self.metadata.config.task]
    return make(self.config, len(self.class_names), self.platform)

  @property
  def encoder_params(self) -> Any:
    """Parameters of `encoder`."""
    return classifiers.inference_params(self.params)["encoder"]

  @property
  def autoencoder(self) -> mae.MaskedAutoencoder:
    """Encoder and decoder; its variables are `mae.apply_variables(params)`."""
    model = factory.masked_autoencoder(self.config, self.platform)
    return model.clone(encoder=self.encoder, decoder=self.decoder)

  @property
  def info(self) -> dict[str, Any]:
    """The checkpoint's path and task, as JSON content."""
    return {
      "checkpoint": str(self.path),
      "checkpoint_task": self.metadata.config.task,
    }


def load(
  path: epath.PathLike,
  mesh: Mesh,
  overrides: conversion.ModelOverrides = conversion.NO_OVERRIDES,
  *,
  head: bool = False,
  decoder: bool | None = False,
) -> LoadedModel:
  """Loads a checkpoint of any task, or weights of another format.

  Args:
    path: a workdir, a checkpoint, or weights.
    mesh: the devices.
    overrides: what is known of the network besides.
    head: require a classifier.
    decoder: require an autoencoder; None keeps a decoder if there is one, False
      leaves it out.

  Raises:
    ConfigError: if there is no checkpoint, it is damaged, or it lacks the
      required part.
  """
  if decoder is False:
    overrides = dataclasses.replace(overrides, no_decoder=True)
  params, run = conversion.load_any(path, mesh, overrides)
  config, platform = run.config, mesh.devices.flat[0].platform
  found = params.get(classifiers.MODEL, {})
  if decoder and (config.task != "pretrain" or "decoder" not in found):
    raise ConfigError(
      f"{path} has no decoder, without which nothing is reconstructed: name a "
      "checkpoint of pre-training, or weights that hold both "
      "(mae_pretrain_vit_base_full.pth, or a ViTMAEForPreTraining)"
    )
  if head and config.task == "pretrain":
    raise ConfigError(
      f"{path} has no head: it is of a run of task={config.task}. Fine-tune "
      "or probe it first (--config=configs/finetune_vit_b.py "
      f"--config.init_from={path}), and name that run's workdir. To measure "
      "its features as they are, use task=evaluate with "
      "--config.eval.measure=features"
    )
  if config.task == "pretrain":
    # Weights of other formats may have position tables of their own.
    encoder = factory.encoder(config, platform).clone(
      learned_positions="pos_embed" in found["encoder"]
    )
    built_decoder = None
    if decoder is not False and "decoder" in found:
      built_decoder = factory.masked_autoencoder(
        config, platform
      ).decoder.clone(learned_positions="pos_embed" in found["decoder"])
    return LoadedModel(
      path, params, run, config, platform, encoder, built_decoder
    )
  built = classifiers.CLASSIFIERS[config.task](
    config, len(run.class_names), platform
  )
  like = jax.eval_shape(built.init, jax.random.key(0))
  checkpoints.check_shapes(path, params, like)
  return LoadedModel(path, params, run, config, platform, built.encoder)


def locate(config: Config) -> epath.Path:
  """Returns the directory of the checkpoint `init_from`.

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


# Settings that say how images reach the network.
_PREPARATION = ("data.image_size", "data.channels", "data.mean", "data.std")


def load_for_evaluation(
  config: Config, mesh: Mesh, *, head: bool
) -> LoadedModel:
  """Loads the checkpoint `init_from` for evaluation under another config.

  The network and the preparation of its images must be those of the checkpoint.
  The config chooses the images and how the network is computed. `head` requires
  a classifier.

  Raises:
    ConfigError: if there is no such checkpoint, or the config contradicts it.
  """
  # The newest checkpoint of a running run may change between two readings.
  step = locate(config)
  with storage.os_errors(config.init_from):
    found = load(
      step, mesh, conversion.ModelOverrides.from_config(config), head=head
    )
  before = found.config
  settings = [*_PREPARATION, *(("classify.pooling",) if head else ())]
  if architecture.diff(factory.encoder(config, found.platform), found.encoder):
    settings += [f"model.{name}" for name in ("variant", *architecture.FIELDS)]
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
  if (
    head
    and config.data.holdout
    and (before.data.path, before.data.holdout)
    != (config.data.path, config.data.holdout)
  ):
    console.warn(
      f"the checkpoint was trained with data.path={before.data.path!r} and "
      f"data.holdout={before.data.holdout:g}: it may have seen the images that "
      f"data.holdout={config.data.holdout:g} now holds out",
      shared=True,
    )
  computed = ("dtype", "remat", "unroll", "attention_chunk_mb")
  changes: Any = {name: getattr(config.model, name) for name in computed}
  model = dataclasses.replace(before.model, **changes)
  merged = dataclasses.replace(
    before, data=config.data, model=model, eval=config.eval
  )
  encoder = factory.with_computation(found.encoder, merged, found.platform)
  return dataclasses.replace(found, config=merged, encoder=encoder)
