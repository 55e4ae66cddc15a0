"""The run that a checkpoint of a network is of, and what a run says of it."""

from __future__ import annotations

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
  open_questions,
  unnamed,
)
from mae_jax.models import architecture, classifiers, factory
from mae_jax.utils.errors import ConfigError

_DIMS = ("width", "depth", "heads", "mlp_dim")
_WORDS: dict[bool | None, str] = {
  value: word for word, value in TARGETS.items()
}
_NETWORK = (*_DIMS, "patch_size", "decoder", "norm_eps", "activation")


def to_run(
  facts: ModelInfo,
  what: str,
  base: checkpoints.CheckpointMetadata | None = None,
) -> checkpoints.CheckpointMetadata:
  """The run of a checkpoint with such a network.

  Args:
    facts: with nothing open.
    what: the file, for messages.
    base: what the file says of the run that trained it. Without, settings of
      training are those of no training.

  Raises:
    ConfigError: if something is open, or the sizes do not fit together.
  """
  task = TASKS[facts.kind]
  before = from_run(base, facts.kind) if base else None
  if base and base.config.task == task and before == facts:
    return base
  if questions := open_questions(facts):
    raise ConfigError(
      f"{what} does not say {questions[0]} (python -m mae_jax convert)"
    )
  assert facts.image_size is not None
  assert facts.mean is not None
  assert facts.std is not None
  model = _model(facts)
  if base and all(getattr(before, x) == getattr(facts, x) for x in _NETWORK):
    model = base.config.model  # which says how it is computed, too
  config = base.config if base else _untrained(facts)
  config = dataclasses.replace(
    config,
    task=task,
    data=dataclasses.replace(
      config.data,
      image_size=facts.image_size,
      channels=facts.channels,
      mean=facts.mean,
      std=facts.std,
      eval_crop=facts.eval_crop,
    ),
    model=model,
    objective=dataclasses.replace(
      config.objective,
      mask_ratio=facts.mask_ratio,
      target=_WORDS.get(facts.norm_pix, config.objective.target),
    ),
    classify=dataclasses.replace(config.classify, pooling=facts.pooling),
  )
  # As any config: values and bounds are checked.
  config = from_config_dict(to_dict(config))
  names = facts.class_names or unnamed(facts.classes)
  if base is None:
    return checkpoints.CheckpointMetadata(config, {}, names)
  return dataclasses.replace(base, config=config, class_names=names)


def _untrained(facts: ModelInfo) -> Config:
  assert facts.image_size is not None
  assert facts.mean is not None
  assert facts.std is not None
  return Config(
    task=TASKS[facts.kind],
    data=DataConfig(
      source="folder",
      batch_size=1,
      image_size=facts.image_size,
      crop_scale=(1.0, 1.0),
      flip=False,
      eval_crop=facts.eval_crop,
      mean=facts.mean,
      std=facts.std,
    ),
    model=_model(facts),
    objective=ObjectiveConfig(),
    optim=OptimConfig(
      blr=0.0, warmup="0 steps", weight_decay=0.0, b1=0.9, b2=0.999
    ),
    train=TrainConfig(length="0 steps"),
  )


def _model(facts: ModelInfo) -> ModelConfig:
  size, patch = facts.size, facts.patch_size
  dims = {name: getattr(facts, name) for name in _DIMS}
  return ModelConfig(
    variant=f"{size or next(iter(architecture.VARIANTS))}/{patch[0]}",
    patch_size=None if patch[0] == patch[1] else patch,
    dtype="float32",
    norm_eps=facts.norm_eps,
    activation=facts.activation,
    **({} if size else dims),
    **_decoder_settings(facts.decoder),
  )


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
  """What is known of a network that was trained here."""
  config = run.config
  encoder = factory.encoder(config)
  dims = None
  if kind == MAE:
    decoder = factory.masked_autoencoder(config).decoder
    dims = architecture.Dims(
      decoder.width, decoder.depth, decoder.heads, decoder.mlp_dim
    )
  return ModelInfo(
    kind=kind,
    width=encoder.width,
    depth=encoder.depth,
    heads=encoder.heads,
    mlp_dim=encoder.mlp_dim,
    patch_size=encoder.patch_size,
    channels=config.data.channels,
    image_size=config.data.image_size,
    decoder=dims,
    norm_eps=encoder.norm_eps,
    activation=encoder.activation,
    norm_pix=TARGETS.get(config.objective.target) if kind == MAE else None,
    mask_ratio=config.objective.mask_ratio,
    mean=config.data.mean,
    std=config.data.std,
    eval_crop=config.data.eval_crop,
    pooling=config.classify.pooling,
    classes=len(run.class_names) if kind in (CLASSIFIER, PROBE) else 0,
    class_names=run.class_names,
  )


def shapes(
  run: checkpoints.CheckpointMetadata, kind: str
) -> dict[str, tuple[int, ...]]:
  """The arrays of such a network, by path; fixed positions are not among them.

  Raises:
    ConfigError: if sizes do not fit together.
  """
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


def check_one(
  path: epath.PathLike, run: checkpoints.CheckpointMetadata
) -> None:
  """Refuses a run whose checkpoints are no single network.

  Raises:
    ConfigError: it names the one that the many started from.
  """
  known = list(dict.fromkeys(TASKS.values()))
  if run.config.task not in known:
    raise ConfigError(
      f"{path} is of a run of task={run.config.task}, which holds many "
      f"networks: name a checkpoint of {', '.join(known[:-1])} or {known[-1]}, "
      f"such as {run.config.init_from}, from which these started"
    )


def metadata(run: checkpoints.CheckpointMetadata) -> dict[str, Any]:
  """What our own files say of a run besides, as JSON content.

  Weights are given away: where files were on this machine stays here.
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
  }


def run_of_metadata(
  content: Mapping[str, Any],
) -> checkpoints.CheckpointMetadata:
  """The reverse.

  Raises:
    ConfigError: if it is not of this version.
  """
  return checkpoints.CheckpointMetadata(
    from_config_dict(content["config"]),
    content["data"],
    tuple(content["class_names"]),
  )
