"""Networks and parameters of the smallest useful run, for tests."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.lib.tiny_config import config, with_changes
from mae_jax.config import Config
from mae_jax.models import factory, mae

__all__ = [
  "big",
  "config",
  "model",
  "params",
  "random_params",
  "shapes",
  "with_changes",
]


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
