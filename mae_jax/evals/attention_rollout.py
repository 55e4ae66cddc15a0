"""What an encoder looks at: attention, its rollout, and features as colors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import decomposition

from mae_jax.config import DataConfig
from mae_jax.models import mae, patchify
from mae_jax.utils.errors import ConfigError


class Seen(NamedTuple):
  """What one image does to an encoder.

  Attributes:
    weights: float32 [depth, heads, 1 + L, 1 + L], each row what a token takes
      of each; the class token is the first.
    patches: float32 [L, D], the tokens at the end.
  """

  weights: np.ndarray
  patches: np.ndarray


def watcher(
  encoder: mae.Encoder, data: DataConfig
) -> Callable[[Any, np.ndarray], Seen]:
  """A function from parameters and one uint8 image [H, W, C] to what is seen.

  Args:
    encoder: the network.
    data: mean and std of pixels.
  """
  # Of float32, as bfloat16 gives rows that do not sum to one.
  plain = encoder.clone(dtype=jnp.float32, remat="none", frozen=0)

  @jax.jit
  def apply(params: Any, pixels: jax.Array) -> Any:
    x = patchify.normalize(pixels[None], data.mean, data.std)
    tokens, state = plain.apply(
      {"params": params}, x, mutable=["intermediates"]
    )
    stack = state["intermediates"]["stack"]
    (weights,) = stack["blocks"]["attn"]["weights"]
    return weights[:, 0], tokens.patches[0]

  def watch(params: Any, pixels: np.ndarray) -> Seen:
    return Seen(*jax.device_get(apply(params, pixels)))

  return watch


def rollout(weights: np.ndarray) -> np.ndarray:
  """How much of each patch has come to the class token through all blocks.

  The product over blocks of half the mean of the heads and half the identity,
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


class Colors:
  """Three principal components of patch features, as red, green and blue.

  Attributes:
    shares: of the variance, [3].
  """

  def __init__(self, features: np.ndarray):
    """Fits them.

    Args:
      features: [N, D], of the patches of some images.

    Raises:
      ConfigError: if there are fewer than four, or they are all the same.
    """
    if len(features) < 4 or not features.std(axis=0).any():
      raise ConfigError(
        f"{len(features)} patches have no three principal components: show "
        "more images"
      )
    self._pca = decomposition.PCA(3, svd_solver="full")
    found = self._pca.fit_transform(features)
    self.shares = self._pca.explained_variance_ratio_
    # A few far off would leave the rest gray.
    self._range = np.percentile(found, (1, 99), axis=0)

  def __call__(self, features: np.ndarray) -> np.ndarray:
    """[L, D] -> uint8 [L, 3]."""
    low, high = self._range
    scaled = (self._pca.transform(features) - low) / np.maximum(
      high - low, 1e-12
    )
    return np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8)
