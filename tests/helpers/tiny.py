"""The smallest useful run, for tests: digits, 8 x 8 gray, in float32."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
from mae_jax.models import factory, mae

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
    eval_split="test",
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


def big(variant: str, **model) -> Config:
  """Returns the paper's network on 224-pixel color images."""
  return config(
    data={
      "image_size": (224, 224),
      "channels": 3,
      "mean": (0.5,) * 3,
      "std": (0.5,) * 3,
    },
    model={
      "variant": variant,
      "width": None,
      "depth": None,
      "heads": None,
      "mlp_dim": None,
      "decoder_width": 512,
      "decoder_depth": 8,
      "decoder_heads": 16,
    }
    | model,
  )


def model(**sections: Any) -> mae.MaskedAutoencoder:
  """Builds the network of `config(**sections)`."""
  return factory.masked_autoencoder(config(**sections))


def shapes(config: Config) -> Any:
  """Returns the parameters of a config's network as ShapeDtypeStructs."""
  network = factory.masked_autoencoder(config)
  images = jnp.zeros((1, *config.data.image_size, config.data.channels))
  init = functools.partial(network.init, method=network.__call__)
  keys = {"params": jax.random.key(0), "mask": jax.random.key(1)}
  return jax.eval_shape(init, keys, images)["params"]


@functools.cache
def params(seed: int = 0) -> Any:
  """Samples all parameters of the tiny network."""
  return random_params(shapes(config()), seed)


def random_params(shapes: Any, seed: int = 0) -> Any:
  """Samples kernels of order one over root fan-in, and nonzero biases."""
  random = np.random.default_rng(seed)

  def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    values = random.normal(size=leaf.shape)
    kind = path[-1].key
    if kind == "kernel":
      values /= np.sqrt(leaf.shape[-2])
    else:
      values = 0.2 * values + (kind == "scale")
    return values.astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)
