"""The smallest useful run: digits, 8 x 8 gray, in float32."""

from __future__ import annotations

import dataclasses
from typing import Any

from mae_jax.config import (
  Config,
  DataConfig,
  ModelConfig,
  ObjectiveConfig,
  OptimConfig,
  TrainConfig,
  config_dict,
  from_config_dict,
)

_CONFIG = Config(
  task="pretrain",
  data=DataConfig(
    source="digits",
    batch_size=32,
    image_size=(8, 8),
    channels=1,
    crop_scale=(0.6, 1.0),
    flip=False,
    eval_crop=1.0,
    mean=(0.3,),
    std=(0.4,),
  ),
  model=ModelConfig(
    variant="Ti/2",
    width=32,
    depth=2,
    heads=4,
    mlp_dim=64,
    decoder_width=16,
    decoder_depth=1,
    decoder_heads=4,
    dtype="float32",
    unroll=1,  # compiles faster
  ),
  objective=ObjectiveConfig(),
  optim=OptimConfig(
    blr=1e-2, warmup="2 steps", weight_decay=0.05, b1=0.9, b2=0.95
  ),
  train=TrainConfig(length="20 steps"),
)


def config(**sections: Any) -> Config:
  """Returns the tiny Config with changes: `config(model={"width": 64})`."""
  return with_changes(_CONFIG, **sections)


def with_changes(base: Config, **sections: Any) -> Config:
  """Returns any Config with changes, as in `config`."""
  changes = {
    name: dataclasses.replace(getattr(base, name), **value)
    if isinstance(value, dict)
    else value
    for name, value in sections.items()
  }
  replaced = dataclasses.replace(base, **changes)
  return from_config_dict(config_dict(replaced))
