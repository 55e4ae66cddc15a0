"""Image classifiers: the networks of fine-tuning and linear probing.

Parameters are grouped by role, so that a checkpoint records how each was
trained.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from mae_jax.config import Config, lookup
from mae_jax.models import batch_norm, factory, mae, patchify, vit

# Roles. The encoder of every task is at params[MODEL]["encoder"].
MODEL = "model"
AVERAGED = "averaged"  # moving average of MODEL in fine-tuning
HEAD, STATS = "head", "stats"  # linear probe only

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class FineTuned:
  """A ViT whose encoder is trained together with the head.

  Attributes:
    model: the network.
    config: the run's settings.
  """

  model: vit.VisionTransformer
  config: Config

  @property
  def encoder(self) -> mae.Encoder:
    """The encoder, configured as the head needs it."""
    return self.model.encoder

  def init(self, key: jax.Array) -> dict[str, Any]:
    """Initializes parameters; averages start as copies of them."""
    params = self.model.init(key, _blank_images(self.config))["params"]
    averaged = {AVERAGED: params} if self.config.classify.ema else {}
    return {MODEL: params} | averaged

  def logits(self, params: Params, pixels: jax.Array) -> jax.Array:
    """Computes logits [B, N] of uint8 images [B, H, W, C].

    Averaged parameters are used if there are any.
    """
    x = normalize_pixels(pixels, self.config)
    out: Any = self.model.apply({"params": inference_params(params)}, x)
    return out


@dataclasses.dataclass(frozen=True)
class Probe:
  """A linear layer on normalized features of a frozen encoder.

  Attributes:
    encoder: the network in front of the layer.
    num_classes: N.
    config: the run's settings.
  """

  encoder: mae.Encoder
  num_classes: int
  config: Config

  @property
  def head(self) -> Any:
    """The linear layer."""
    return vit.head(self.num_classes, self.config.classify.head_std)

  def init(self, key: jax.Array) -> dict[str, Any]:
    """Initializes parameters and empty running statistics."""
    key, head_key = jax.random.split(key)
    blank = _blank_images(self.config)
    params = {"encoder": self.encoder.init(key, blank)["params"]}
    x = jax.eval_shape(self.features, {MODEL: params}, blank)
    stats = batch_norm.Statistics.create(x.shape[1])
    return {
      MODEL: params,
      HEAD: self.head.init(head_key, jnp.zeros(x.shape))["params"],
      STATS: {"mean": stats.mean, "var": stats.var},
    }

  def features(self, params: Params, pixels: jax.Array) -> jax.Array:
    """Pools uint8 images [B, H, W, C] to [B, D] by `classify.pooling`."""
    x = normalize_pixels(pixels, self.config)
    tokens: Any = self.encoder.apply({"params": params[MODEL]["encoder"]}, x)
    return mae.POOLINGS[self.config.classify.pooling](tokens)

  def linear(self, head: Params, x: jax.Array) -> jax.Array:
    """Maps normalized features [B, D] to logits [B, N]."""
    out: Any = self.head.apply({"params": head}, x)
    return out

  def logits(self, params: Params, pixels: jax.Array) -> jax.Array:
    """Computes logits [B, N] of uint8 images, by the running statistics."""
    stats = batch_norm.Statistics(**params[STATS])
    x = batch_norm.normalize(self.features(params, pixels), stats)
    return self.linear(params[HEAD], x)


Classifier: TypeAlias = FineTuned | Probe


def fine_tuned(config: Config, num_classes: int, platform: str) -> FineTuned:
  """Builds the network of a fine-tuning run, as `factory.classifier` does."""
  model = factory.classifier(config, num_classes, platform)
  return FineTuned(model, config)


def probe(config: Config, num_classes: int, platform: str) -> Probe:
  """Builds the network of a linear probe; arguments as in `fine_tuned`."""
  pooling = config.classify.pooling
  lookup(mae.POOLINGS, pooling, "classify.pooling")
  return Probe(factory.encoder(config, platform), num_classes, config)


# By the name of the task.
CLASSIFIERS: dict[str, Callable[[Config, int, str], Classifier]] = {
  "finetune": fine_tuned,
  "linprobe": probe,
}


def inference_params(params: Params) -> Any:
  """Returns the averaged parameters if there are any, else the trained ones."""
  return params[AVERAGED if AVERAGED in params else MODEL]


def normalize_pixels(pixels: jax.Array, config: Config) -> jax.Array:
  """Normalizes uint8 images for the network."""
  return patchify.normalize(pixels, config.data.mean, config.data.std)


def _blank_images(config: Config) -> jax.Array:
  shape = (1, *config.data.image_size, config.data.channels)
  return jnp.zeros(shape, jnp.uint8)
