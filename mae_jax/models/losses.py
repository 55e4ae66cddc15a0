"""Losses of reconstruction: pure functions of arrays."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mae_jax.config import Config, lookup
from mae_jax.distributed import sharding
from mae_jax.models import masking
from mae_jax.utils.errors import ConfigError

NORM_PIX_EPS = 1e-6


def patch_statistics(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Computes the mean and standard deviation for `normalize_patches`.

  The variance is unbiased (ddof = 1) and NORM_PIX_EPS is added, as in the
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
  """Scales each patch [..., P] to zero mean and unit variance ("norm_pix")."""
  mean, std = patch_statistics(patches)
  return (patches - mean) / std


# Elementwise losses of a difference. "smooth_l1" is quadratic up to 1 and
# linear beyond, as PyTorch's with beta = 1.
PIXEL_LOSSES: dict[str, Callable[[jax.Array], jax.Array]] = {
  "mse": jnp.square,
  "l1": jnp.abs,
  "smooth_l1": optax.losses.huber_loss,
  "log_cosh": optax.losses.log_cosh,
}
# Functions from the mask and the losses to the weights of patches or pixels.
LOSS_REGIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  "masked": lambda mask, costs: mask,
  "all": lambda mask, costs: jnp.ones_like(costs),
}


def reconstruction(
  pred: jax.Array,
  target: jax.Array,
  mask: jax.Array,
  error: str = "mse",
  region: str = "masked",
) -> jax.Array:
  """Computes the mean loss over masked patches, or over all.

  Args:
    pred: [B, L, T].
    target: [B, L, T].
    mask: [B, L], or [B, L, P] per pixel; 1 = removed. A mask of pixels with
      region "masked" needs targets that are pixels.
    error: a name in PIXEL_LOSSES.
    region: a name in LOSS_REGIONS.

  Returns:
    A float32 scalar.
  """
  costs = PIXEL_LOSSES[error](pred - target).astype(jnp.float32)
  if mask.ndim == 2:
    costs = costs.mean(axis=-1)
  weights = LOSS_REGIONS[region](mask, costs)
  return (costs * weights).sum() / weights.sum()


def info_nce(
  pred: jax.Array, target: jax.Array, temperature: float
) -> jax.Array:
  """Computes the InfoNCE loss between predictions and their own targets.

  -log(exp(s_ii / t) / sum_j exp(s_ij / t)), where s is cosine similarity and t
  the temperature, averaged over i (van den Oord et al. 2018, arXiv 1807.03748).

  Args:
    pred: [..., N, T].
    target: [..., N, T]; target j is a negative for each prediction i != j.
    temperature: t.

  Returns:
    A float32 scalar.
  """
  pred, target = _unit_length(pred), _unit_length(target)
  highest = jax.lax.Precision.HIGHEST
  similarities = jnp.einsum(
    "...it,...jt->...ij", pred, target, precision=highest
  )
  own = (pred * target).sum(axis=-1)  # [..., N]
  costs = (
    jax.nn.logsumexp(similarities / temperature, axis=-1) - own / temperature
  )
  return costs.mean()


def _unit_length(x: jax.Array) -> jax.Array:
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-12)


@dataclasses.dataclass(frozen=True)
class InfoNCE:
  """An auxiliary loss: a prediction must find its patch among its image's.

  Attributes:
    temperature: divides the similarities.
    patches: number of masked patches of an image to compare; 0 for all.
  """

  temperature: float
  patches: int

  def count(self, num_masked: int) -> int:
    """Returns how many of an image's masked patches are compared."""
    return min(self.patches or num_masked, num_masked)

  def __call__(
    self, pred: jax.Array, target: jax.Array, masked: masking.Masking
  ) -> jax.Array:
    """Computes the loss of predictions and targets [B, L, T], a scalar."""
    # The shuffled order is random, so the last patches are a random subset.
    num_masked = masked.ids_shuffle.shape[1] - masked.num_keep
    ids = masked.ids_shuffle[:, -self.count(num_masked) :, None]
    taken = (jnp.take_along_axis(x, ids, axis=1) for x in (pred, target))
    return self.contrast(*taken)

  def num_targets(self, count: int, batch: int) -> int:
    """Returns the number of targets that each of `count` patches meets."""
    del batch
    return count

  def check(self, num_masked: int, batch: int) -> None:
    """Checks that there are at least two targets to compare.

    Args:
      num_masked: masked patches per image.
      batch: images per batch.

    Raises:
      ValueError: if a patch would be compared only with itself, so that the
        loss is always 0.
    """
    if self.num_targets(self.count(num_masked), batch) < 2:
      raise ValueError(
        f"contrast_patches={self.patches} (0 is all), with {num_masked} masked "
        "patches per image, leaves nothing to compare a patch with: raise it, "
        "or mask more"
      )

  def flops(self, num_masked: int, width: int, batch: int) -> int:
    """Counts flops of a training step for one image of B.

    The gradient flows only to predictions, and costs as much as the loss.
    """
    count = self.count(num_masked)
    return 4 * count * self.num_targets(count, batch) * width

  def contrast(self, pred: jax.Array, target: jax.Array) -> jax.Array:
    """Computes InfoNCE of [B, N, T] within each image."""
    return info_nce(pred, target, self.temperature)


class BatchInfoNCE(InfoNCE):
  """InfoNCE contrast the patches of all images of the global batch."""

  def num_targets(self, count: int, batch: int) -> int:
    """Returns the number of targets in the whole batch."""
    return count * batch

  def contrast(self, pred: jax.Array, target: jax.Array) -> jax.Array:
    """Computes InfoNCE of [B, N, T]; each device compares its own with all."""
    width = pred.shape[-1]
    return info_nce(
      sharding.constrain_batch(pred.reshape(-1, width)),
      sharding.replicate(target.reshape(-1, width)),
      self.temperature,
    )


# By the set of patches that each patch is compared with.
CONTRASTIVE_LOSSES: dict[str, type[InfoNCE]] = {
  "image": InfoNCE,
  "batch": BatchInfoNCE,
}


def _contrast(config: Config) -> tuple[float, InfoNCE] | None:
  objective = config.objective
  if objective.contrast == "none":
    return None
  known = dict.fromkeys(["none", *CONTRASTIVE_LOSSES])
  lookup(known, objective.contrast, "objective.contrast")
  if objective.masked_input == "pixel_noise":
    raise ConfigError(
      f"objective.contrast={objective.contrast!r} needs whole masked patches, "
      "and objective.masked_input='pixel_noise' masks single pixels: set "
      "objective.masked_input='noise'"
    )
  if objective.contrast == "batch" and config.optim.accum_steps > 1:
    raise ConfigError(
      "objective.contrast='batch' compares all images of a batch, but with "
      f"optim.accum_steps={config.optim.accum_steps} only a part is in memory "
      "at a time: set optim.accum_steps=1, or objective.contrast='image'"
    )
  if objective.contrast == "batch" and not objective.contrast_patches:
    raise ConfigError(
      "objective.contrast='batch' compares the patches of all images, at a "
      "cost that grows with the square of the batch: limit the patches per "
      "image, for instance objective.contrast_patches=4"
    )
  loss = CONTRASTIVE_LOSSES[objective.contrast](
    objective.contrast_temperature, objective.contrast_patches
  )
  return objective.contrast_weight, loss


# Functions from the settings to the weight and the `mae.AuxiliaryLoss`, or to
# None if the loss is not used.
AUXILIARY_LOSSES: dict[str, Callable[[Config], tuple[float, Any] | None]] = {
  "contrast": _contrast,
}


def auxiliary(config: Config) -> tuple[tuple[str, float, Any], ...]:
  """Builds the auxiliary losses of a config: name, weight and loss of each.

  Raises:
    ConfigError: if settings do not fit together.
  """
  found = {name: build(config) for name, build in AUXILIARY_LOSSES.items()}
  return tuple((name, *loss) for name, loss in found.items() if loss)
