"""InfoNCE of reconstructed patches and their originals."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mae_jax import losses
from mae_jax.models import masking, partition


@dataclasses.dataclass(frozen=True)
class Contrast:
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
    return losses.info_nce(pred, target, self.temperature)


class BatchContrast(Contrast):
  """The same among the originals of all images of the global batch."""

  def others(self, count: int, batch: int) -> int:
    """With those of the whole batch."""
    return count * batch

  def among(self, pred: jax.Array, target: jax.Array) -> jax.Array:
    """InfoNCE of [B, N, T]; each device compares its own with all."""
    width = pred.shape[-1]
    return losses.info_nce(
      partition.constrain_batch(pred.reshape(-1, width)),
      partition.replicate(target.reshape(-1, width)),
      self.temperature,
    )


# By where the others are.
CONTRASTS: dict[str, type[Contrast]] = {
  "image": Contrast,
  "batch": BatchContrast,
}
