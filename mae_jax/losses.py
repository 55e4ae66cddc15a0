"""Losses of reconstruction and classification: pure functions of arrays."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

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


# What a difference costs, by name. "smooth_l1" is half its square up to 1 and
# straight beyond, as PyTorch's with beta = 1.
ERRORS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "mse": jnp.square,
  "l1": jnp.abs,
  "smooth_l1": optax.losses.huber_loss,
  "log_cosh": optax.losses.log_cosh,
}
# Which patches, or pixels, count, by name: from the mask to weights.
SCORED: dict[str, Callable[[jax.Array], jax.Array]] = {
  "masked": lambda mask: mask,
  "all": jnp.ones_like,
}


def reconstruction(
  pred: jax.Array,
  target: jax.Array,
  mask: jax.Array,
  error: str = "mse",
  scored: str = "masked",
) -> jax.Array:
  """What predictions cost on average over patches: of the hidden ones, in MAE.

  Args:
    pred: [B, L, T].
    target: [B, L, T].
    mask: [B, L], or of each value [B, L, T]; 1 = removed.
    error: a name in ERRORS.
    scored: a name in SCORED.

  Returns:
    A float32 scalar.
  """
  weights = SCORED[scored](mask)
  costs = ERRORS[error](pred - target).astype(jnp.float32)
  if mask.ndim == 2:
    costs = costs.mean(axis=-1)
  return (costs * weights).sum() / weights.sum()


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
