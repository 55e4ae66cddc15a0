"""Losses of reconstruction and classification: pure functions of arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from mae_jax.distributed import sharding
from mae_jax.models import masking

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
PIXEL_LOSSES: dict[str, Callable[[jax.Array], jax.Array]] = {
  "mse": jnp.square,
  "l1": jnp.abs,
  "smooth_l1": optax.losses.huber_loss,
  "log_cosh": optax.losses.log_cosh,
}
# Which patches, or pixels, count, by name: weights from the mask and the costs.
LOSS_REGIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  "masked": lambda mask, costs: mask,
  "all": lambda mask, costs: jnp.ones_like(costs),
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
    mask: [B, L], or of each pixel [B, L, P]; 1 = removed. Of these only
      targets that are pixels themselves can be scored where "masked".
    error: a name in ERRORS.
    scored: a name in SCORED.

  Returns:
    A float32 scalar.
  """
  costs = PIXEL_LOSSES[error](pred - target).astype(jnp.float32)
  if mask.ndim == 2:
    costs = costs.mean(axis=-1)
  weights = LOSS_REGIONS[scored](mask, costs)
  return (costs * weights).sum() / weights.sum()


def info_nce(
  pred: jax.Array, target: jax.Array, temperature: float
) -> jax.Array:
  """How well predictions find their own targets among those of others.

  -log(exp(s_ii / t) / sum_j exp(s_ij / t)), where s is cosine similarity and t
  the temperature, on average over i (van den Oord et al. 2018, arXiv
  1807.03748).

  Args:
    pred: [..., N, T].
    target: [..., N, T]; those of one i are what the others must not be like.
    temperature: t.

  Returns:
    A float32 scalar.
  """
  pred, target = _unit_length(pred), _unit_length(target)
  highest = jax.lax.Precision.HIGHEST
  every = jnp.einsum("...it,...jt->...ij", pred, target, precision=highest)
  own = (pred * target).sum(axis=-1)  # [..., N]
  costs = jax.nn.logsumexp(every / temperature, axis=-1) - own / temperature
  return costs.mean()


def _unit_length(x: jax.Array) -> jax.Array:
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-12)


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


@dataclasses.dataclass(frozen=True)
class InfoNCE:
  """Each reconstructed patch is to find its own original among its image's.

  Attributes:
    temperature: of the similarities.
    patches: hidden patches of an image that take part; 0 for all.
  """

  temperature: float
  patches: int

  def count(self, hidden: int) -> int:
    """Of so many hidden patches of an image, how many take part."""
    return min(self.patches or hidden, hidden)

  def __call__(
    self, pred: jax.Array, target: jax.Array, masked: masking.Masking
  ) -> jax.Array:
    """Predictions and targets [B, L, T] and what was hidden -> a scalar."""
    # The order is random, among the hidden as among the visible.
    hidden = masked.ids_shuffle.shape[1] - masked.num_keep
    ids = masked.ids_shuffle[:, -self.count(hidden) :, None]
    taken = (jnp.take_along_axis(x, ids, axis=1) for x in (pred, target))
    return self.among(*taken)

  def others(self, count: int, batch: int) -> int:
    """With how many originals each of `count` patches an image is compared."""
    del batch
    return count

  def check(self, hidden: int, batch: int) -> None:
    """Whether there is anything to compare with.

    Raises:
      ValueError: if of `hidden` patches of each of `batch` images only one is
        compared, with itself: its loss is always 0.
    """
    if self.others(self.count(hidden), batch) < 2:
      raise ValueError(
        f"contrast_patches={self.patches} (0 is all), of {hidden} hidden in "
        f"an image, leaves nothing to compare a patch with: raise it, or hide "
        "more"
      )

  def flops(self, hidden: int, width: int, batch: int) -> int:
    """Of a training step on one image of B, counted on paper.

    The gradient is of predictions alone, and costs what the loss does.
    """
    count = self.count(hidden)
    return 4 * count * self.others(count, batch) * width

  def among(self, pred: jax.Array, target: jax.Array) -> jax.Array:
    """InfoNCE of [B, N, T], within each image."""
    return info_nce(pred, target, self.temperature)


class BatchInfoNCE(InfoNCE):
  """The same among the originals of all images of the global batch."""

  def others(self, count: int, batch: int) -> int:
    """With those of the whole batch."""
    return count * batch

  def among(self, pred: jax.Array, target: jax.Array) -> jax.Array:
    """InfoNCE of [B, N, T]; each device compares its own with all."""
    width = pred.shape[-1]
    return info_nce(
      sharding.constrain_batch(pred.reshape(-1, width)),
      sharding.replicate(target.reshape(-1, width)),
      self.temperature,
    )


# By where the others are.
CONTRASTIVE_LOSSES: dict[str, type[InfoNCE]] = {
  "image": InfoNCE,
  "batch": BatchInfoNCE,
}
