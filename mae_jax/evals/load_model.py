"""Loads networks from checkpoints, for evaluation and for every tool."""

import dataclasses
import re
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from mae_jax import checkpoints, conversion
from mae_jax.config import (
  Config,
  DataConfig,
  from_config_dict,
  leaves,
  to_dict,
)
from mae_jax.distributed import sharding
from mae_jax.models import (
  architecture,
  classifiers,
  factory,
  mae,
  patchify,
  pos_embed,
)
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
  def description(self) -> str:
    """The network in a few words, such as "ViT-B/16, 224 x 224"."""
    height, width = self.config.data.image_size
    return f"ViT-{self.config.model.variant}, {height} x {width}"

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


def resize(
  found: LoadedModel,
  image_size: tuple[int, int] | None,
  mesh: Mesh,
  setting: str = "--image_size",
) -> LoadedModel:
  """Returns a network for images of another size.

  Positions of encoder and decoder are interpolated, as fine-tuning does with
  the positions that it starts from.

  Args:
    found: the network.
    image_size: height and width; None for the network's own.
    mesh: the devices.
    setting: what errors call the size.

  Raises:
    ConfigError: if patches do not fit into such images.
  """
  if image_size is None or image_size == found.config.data.image_size:
    return found
  config = _with_size(found.config, image_size, setting)
  if jax.process_index() == 0:
    console.notice(
      f"{found.path} was trained with data.image_size="
      f"{found.config.data.image_size}: its positions are interpolated for "
      f"{image_size}"
    )
  before, grid = (
    patchify.grid_size(each.data.image_size, found.encoder.patch_size)
    for each in (found.config, config)
  )
  params = {
    role: dict(tree) | _interpolated(tree, before, grid, mesh)
    for role, tree in found.params.items()
  }
  decoder = found.decoder
  if decoder is not None:
    decoder = decoder.clone(grid=grid, learned_positions=True)
  encoder = found.encoder.clone(learned_positions=True)
  return dataclasses.replace(
    found, params=params, config=config, encoder=encoder, decoder=decoder
  )


def _interpolated(
  tree: Any, before: tuple[int, int], grid: tuple[int, int], mesh: Mesh
) -> dict[str, Any]:
  """Returns the encoder and decoder of a role with positions for the grid."""
  changed = {}
  for name in ("encoder", "decoder"):
    if name in tree:
      table = pos_embed.table_of(tree[name], before, grid)
      where = sharding.state_shardings(mesh, {"pos_embed": table})
      changed[name] = dict(tree[name]) | jax.device_put(
        {"pos_embed": table}, where
      )
  return changed


def _with_size(
  config: Config, image_size: tuple[int, int], setting: str
) -> Config:
  data = dataclasses.replace(config.data, image_size=image_size)
  changed = dataclasses.replace(config, data=data)
  try:
    changed = from_config_dict(to_dict(changed))
    factory.encoder(changed)
  except ConfigError as error:
    text = re.sub(r"(config\.)?data\.image_size", setting, str(error))
    raise ConfigError(text) from None
  return changed


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


# Settings of images that are those of the checkpoint.
_PIXELS = ("channels", "mean", "std")


def load_for_evaluation(
  config: Config, mesh: Mesh, *, head: bool
) -> LoadedModel:
  """Loads the checkpoint `init_from` for evaluation under another config.

  The network must be that of the checkpoint. The config chooses the images,
  except for `_PIXELS`, their size, and how the network is computed. `head`
  requires a classifier.

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
  settings = ["classify.pooling"] if head else []
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
    before, data=_data(config.data, found, step), model=model
  )
  encoder = factory.with_computation(found.encoder, merged, found.platform)
  loaded = dataclasses.replace(found, config=merged, encoder=encoder)
  return resize(loaded, config.data.image_size, mesh, "data.image_size")


def _data(now: DataConfig, found: LoadedModel, step: epath.Path) -> DataConfig:
  """Returns the data of an evaluation, for images of the checkpoint's size."""
  before = found.config.data
  own = {name: getattr(before, name) for name in _PIXELS}
  if found.metadata.data:  # weights of others do not say it
    own["background"] = before.background
    own["value_range"] = before.value_range
  for name, value in own.items():
    if value != getattr(now, name):
      console.warn(
        f"{step} was trained with data.{name}={value}, which is used here, not "
        f"{getattr(now, name)}"
      )
  return dataclasses.replace(now, **own, image_size=before.image_size)
