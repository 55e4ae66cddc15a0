"""Converts model info to the settings of a run, and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from mae_jax import checkpoints
from mae_jax.checkpoints import checksums
from mae_jax.config import (
  Config,
  DataConfig,
  LabelEfficiencyConfig,
  ModelConfig,
  ObjectiveConfig,
  OptimConfig,
  TrainConfig,
  from_config_dict,
  to_dict,
)
from mae_jax.conversion.model_info import (
  CLASSIFIER,
  MAE,
  PROBE,
  TARGETS,
  TASKS,
  ModelInfo,
  default_class_names,
  missing_info,
)
from mae_jax.models import architecture, classifiers, factory
from mae_jax.utils.errors import ConfigError

_TARGET_NAMES: dict[bool | None, str] = {
  value: word for word, value in TARGETS.items()
}
_NETWORK_FIELDS = (*architecture.FIELDS, "decoder")


# Settings of a run that no file states.
_PLACEHOLDERS = Config(
  task="pretrain",
  data=DataConfig(
    source="folder",
    batch_size=1,
    image_size=(1, 1),
    crop_scale=(1.0, 1.0),
    flip=False,
    eval_crop=1.0,
    mean=(0.0,),
    std=(1.0,),
  ),
  model=ModelConfig(variant="B/16"),
  objective=ObjectiveConfig(),
  optim=OptimConfig(
    blr=0.0, warmup="0 steps", weight_decay=0.0, b1=0.9, b2=0.999
  ),
  train=TrainConfig(length="0 steps"),
)


def to_run(
  info: ModelInfo,
  what: str,
  base: checkpoints.CheckpointMetadata | None = None,
) -> checkpoints.CheckpointMetadata:
  """Returns the checkpoint metadata of a run with this network.

  Args:
    info: model info without unknown fields.
    what: the file, for messages.
    base: the metadata in the file, if any; otherwise the training settings are
      placeholders.

  Raises:
    ConfigError: if info is missing, or the sizes do not fit together.
  """
  task = TASKS[info.kind]
  before = from_run(base, info.kind) if base else None
  if base and base.config.task == task and before == info:
    return base
  if questions := missing_info(info):
    raise ConfigError(
      f"{what} does not state {questions[0]} (python -m mae_jax convert)"
    )
  assert info.image_size is not None
  assert info.mean is not None
  assert info.std is not None
  model = _model_config(info)
  if base and all(
    getattr(before, x) == getattr(info, x) for x in _NETWORK_FIELDS
  ):
    model = base.config.model  # keeps settings of speed and precision
  config = base.config if base else _PLACEHOLDERS
  config = dataclasses.replace(
    config,
    task=task,
    data=dataclasses.replace(
      config.data,
      image_size=info.image_size,
      channels=info.channels,
      mean=info.mean,
      std=info.std,
      eval_crop=info.eval_crop,
      eval_fit=info.eval_fit,
      eval_resample=info.eval_resample,
    ),
    model=model,
    objective=dataclasses.replace(
      config.objective,
      mask_ratio=info.mask_ratio,
      target=_TARGET_NAMES.get(info.norm_pix, config.objective.target),
    ),
    classify=dataclasses.replace(config.classify, pooling=info.pooling),
  )
  # The round trip checks values and bounds.
  config = from_config_dict(to_dict(config))
  names = info.class_names or default_class_names(info.classes)
  if base is None:
    return checkpoints.CheckpointMetadata(config, {}, names)
  return dataclasses.replace(base, config=config, class_names=names)


def _model_config(info: ModelInfo) -> ModelConfig:
  size, patch = info.size, info.patch_size
  return ModelConfig(
    variant=f"{size or next(iter(architecture.VARIANTS))}/{patch[0]}",
    patch_size=None if patch[0] == patch[1] else patch,
    dtype="float32",
    norm_eps=info.norm_eps,
    activation=info.activation,
    **({} if size else _dims(info)),
    **_decoder_settings(info.decoder),
  )


def _dims(found: Any) -> dict[str, Any]:
  return {name: getattr(found, name) for name in architecture.DIMS}


def _decoder_settings(dims: architecture.Dims | None) -> dict[str, Any]:
  if dims is None:
    return {}
  usual = dims.mlp_dim == 4 * dims.width
  return {
    "decoder_width": dims.width,
    "decoder_depth": dims.depth,
    "decoder_heads": dims.heads,
    "decoder_mlp_dim": None if usual else dims.mlp_dim,
  }


def from_run(run: checkpoints.CheckpointMetadata, kind: str) -> ModelInfo:
  """Returns the model info of a network that was trained here."""
  config = run.config
  encoder = factory.encoder(config)
  dims = None
  if kind == MAE:
    decoder = factory.masked_autoencoder(config).decoder
    dims = architecture.Dims(**_dims(decoder.config))
  return ModelInfo(
    kind=kind,
    **_dims(encoder.config),
    patch_size=encoder.patch_size,
    channels=config.data.channels,
    image_size=config.data.image_size,
    decoder=dims,
    norm_eps=encoder.config.norm_eps,
    activation=encoder.config.activation,
    norm_pix=TARGETS.get(config.objective.target) if kind == MAE else None,
    mask_ratio=config.objective.mask_ratio,
    mean=config.data.mean,
    std=config.data.std,
    eval_crop=config.data.eval_crop,
    eval_fit=config.data.eval_fit,
    eval_resample=config.data.eval_resample,
    pooling=config.classify.pooling,
    classes=len(run.class_names) if kind in (CLASSIFIER, PROBE) else 0,
    class_names=run.class_names,
  )


def shapes(
  run: checkpoints.CheckpointMetadata, kind: str
) -> dict[str, tuple[int, ...]]:
  """Returns the arrays' shapes by path, without fixed position tables."""
  config = run.config
  key = jax.random.key(0)
  images = jnp.zeros((1, *config.data.image_size, config.data.channels))
  network: Any
  if kind in (CLASSIFIER, PROBE):
    make = classifiers.CLASSIFIERS[TASKS[kind]]
    network = make(config, len(run.class_names), "cpu")
    tree = jax.eval_shape(network.init, key)
  elif kind == MAE:
    network = factory.masked_autoencoder(config)
    keys = {"params": key, "mask": key}
    tree = dict(jax.eval_shape(network.init, keys, images))
    tree[classifiers.MODEL] = tree.pop("params")
  else:
    network = factory.encoder(config).clone(learned_positions=False)
    params = jax.eval_shape(network.init, key, images)["params"]
    tree = {classifiers.MODEL: {"encoder": params}}
  return {path: leaf.shape for path, leaf in checksums.flatten(tree).items()}


def check_single_network(
  path: epath.PathLike, run: checkpoints.CheckpointMetadata
) -> None:
  """Refuses a run whose checkpoints hold many networks."""
  known = list(dict.fromkeys(TASKS.values()))
  if run.config.task not in known:
    raise ConfigError(
      f"{path} is from a run with task={run.config.task}, which trains many "
      f"networks: use a checkpoint of {', '.join(known[:-1])} or {known[-1]}, "
      f"such as {run.config.init_from}, from which they were initialized"
    )


def to_metadata(run: checkpoints.CheckpointMetadata) -> dict[str, Any]:
  """Converts a run's settings to JSON content for exported files.

  Exported weights are shared, so local paths are removed.
  """
  config = dataclasses.replace(
    run.config,
    init_from="",
    data=dataclasses.replace(run.config.data, path="", data_dir=""),
    label_efficiency=LabelEfficiencyConfig(),
  )
  return {
    "config": to_dict(config),
    "data": dict(run.data),
    "class_names": list(run.class_names),
    "origin": provenance(run),
  }


def provenance(run: checkpoints.CheckpointMetadata | None) -> dict[str, str]:
  """Returns where a network's weights come from, and their license, if known.

  Both keys of `origin`, "source" and "license", are kept by every conversion.
  """
  origin = run.origin if run else {}
  return {key: origin[key] for key in ("source", "license") if key in origin}


def from_metadata(
  content: Mapping[str, Any],
) -> checkpoints.CheckpointMetadata:
  """Converts JSON content of `to_metadata` back."""
  return checkpoints.CheckpointMetadata(
    from_config_dict(content["config"], stored=True),
    content["data"],
    tuple(content["class_names"]),
    dict(content.get("origin", {})),
  )
