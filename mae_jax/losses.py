"""Losses of reconstruction and classification: pure functions of arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp

NORM_PIX_EPS = 1e-6


def patch_statistics(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and standard deviation that `normalize_patches` uses.

  The variance is unbiased (ddof = 1) and has NORM_PIX_EPS added, as in the
  reference.

  Args:
    patches: [..., P].

  Returns:
    Two arrays [..., 1].
  """
  mean = patches.mean(axis=-1, keepdims=True)
  variance = patches.var(axis=-1, keepdims=True, ddof=1)
  return mean, jnp.sqrt(variance + NORM_PIX_EPS)


def normalize_patches(patches: jax.Array) -> jax.Array:
  """[..., P] -> zero mean and unit variance in each patch ("norm_pix")."""
  mean, std = patch_statistics(patches)
  return (patches - mean) / std


def masked_mse(
  pred: jax.Array, target: jax.Array, mask: jax.Array
) -> jax.Array:
  """Mean squared error over the hidden patches.

  Args:
    pred: [B, L, P].
    target: [B, L, P].
    mask: [B, L], 1 = removed, which is what counts.

  Returns:
    A float32 scalar.
  """
  error = jnp.square(pred - target).astype(jnp.float32).mean(axis=-1)
  return (error * mask).sum() / mask.sum()


def soft_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Cross-entropy with a distribution over the classes.

  Args:
    logits: [B, N].
    targets: [B, N], each row sums to 1.

  Returns:
    [B] float32.
  """
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  return -(targets * log_probs).sum(axis=-1)
