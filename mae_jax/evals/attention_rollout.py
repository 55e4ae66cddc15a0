"""Attention weights, attention rollout, and patch features as colors."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.config import DataConfig
from mae_jax.models import mae, patchify
from mae_jax.utils.errors import ConfigError


class AttentionMaps(NamedTuple):
  """An encoder's attention and features for one image.

  Attributes:
    weights: float32 [depth, heads, 1 + L, 1 + L], each row the attention of one
      token; the class token is first.
    patches: float32 [L, D], the final patch tokens.
  """

  weights: np.ndarray
  patches: np.ndarray


def attention_function(
  encoder: mae.Encoder, data: DataConfig
) -> Callable[[Any, np.ndarray], AttentionMaps]:
  """Returns a function from parameters and a uint8 image to AttentionMaps."""
  # Float32, because rows of bfloat16 weights do not sum to one.
  config = dataclasses.replace(
    encoder.config, dtype=jnp.float32, remat="none", frozen=0
  )
  float32_encoder = encoder.clone(config=config)

  @jax.jit
  def apply(params: Any, pixels: jax.Array) -> Any:
    x = patchify.normalize(pixels[None], data.mean, data.std)
    tokens, state = float32_encoder.apply(
      {"params": params}, x, mutable=["intermediates"]
    )
    stack = state["intermediates"]["stack"]
    (weights,) = stack["blocks"]["attn"]["weights"]
    return weights[:, 0], tokens.patches[0]

  def compute(params: Any, pixels: np.ndarray) -> AttentionMaps:
    return AttentionMaps(*jax.device_get(apply(params, pixels)))

  return compute


def rollout(weights: np.ndarray) -> np.ndarray:
  """Computes the attention rollout from the class token to each patch.

  The product over blocks of half the mean over heads and half the identity,
  which stands for the residual (Abnar and Zuidema 2020, section 3).

  Args:
    weights: [depth, heads, 1 + L, 1 + L].

  Returns:
    [L], without the class token's own share.
  """
  mean = weights.astype(np.float64).mean(axis=1)
  steps = 0.5 * mean + 0.5 * np.eye(mean.shape[-1])
  row = np.eye(mean.shape[-1])[0]
  for step in steps[::-1]:
    row = row @ step
  return row[1:]


class FeatureColors:
  """Three principal components of patch features, as red, green and blue.

  Attributes:
    shares: fractions of the variance, [3].
  """

  def __init__(self, features: np.ndarray):
    """Fits the components.

    Args:
      features: [N, D], patch features of some images.

    Raises:
      ConfigError: if there are fewer than four patches, or all are equal.
    """
    if len(features) < 4 or not features.std(axis=0).any():
      raise ConfigError(
        f"{len(features)} patches do not have three principal components: use "
        "more images"
      )
    from sklearn import decomposition

    self._pca = decomposition.PCA(3, svd_solver="full")
    found = self._pca.fit_transform(features)
    self.shares = self._pca.explained_variance_ratio_
    # Percentiles, because a few outliers would leave the rest gray.
    self._range = np.percentile(found, (1, 99), axis=0)

  def __call__(self, features: np.ndarray) -> np.ndarray:
    """Colors features [L, D] as uint8 [L, 3]."""
    low, high = self._range
    scaled = (self._pca.transform(features) - low) / np.maximum(
      high - low, 1e-12
    )
    return np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8)
