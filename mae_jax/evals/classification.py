"""Accuracy of a classifier on held-out images, each counted once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mae_jax import config as config_lib
from mae_jax import losses, sharding
from mae_jax.data import pipeline, sources
from mae_jax.data.unreadable import Unreadable
from mae_jax.evals import features, report


@dataclasses.dataclass(frozen=True)
class Scores:
  """What became of each of N examples.

  Attributes:
    labels: [N].
    loss: [N] cross-entropy.
    rank: [N] how many classes scored above the right one.
    unreadable: how many more could not be read.
  """

  labels: np.ndarray
  loss: np.ndarray
  rank: np.ndarray
  unreadable: int

  def scalars(self) -> dict[str, float]:
    """Means over the examples; nothing if there is none."""
    result = {}
    if self.unreadable:
      result["eval_unreadable"] = float(self.unreadable)
    if len(self.labels):
      result["eval_loss"] = float(self.loss.mean(dtype=np.float64))
      result["eval_top1"] = float((self.rank < 1).mean())
      result["eval_top5"] = float((self.rank < 5).mean())
    return result

  def per_class(self, num_classes: int) -> np.ndarray:
    """[num_classes] share that is right; NaN where there is no example."""
    right = np.bincount(self.labels[self.rank < 1], minlength=num_classes)
    total = np.bincount(self.labels, minlength=num_classes)
    with np.errstate(invalid="ignore"):
      return right / total


def score(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
  """Loss and rank [B] of logits [B, N] and labels [B].

  A logit that is not a number is above every other: nothing is right by it.
  """
  own = jnp.take_along_axis(logits, labels[:, None], axis=1)
  targets = jax.nn.one_hot(labels, logits.shape[1])
  return {
    "loss": losses.soft_cross_entropy(logits, targets),
    "rank": (~(logits <= own)).sum(axis=1),
  }


class Evaluation:
  """Measures a classifier."""

  def __init__(
    self,
    config: config_lib.Config,
    mesh: Mesh,
    logits: Callable[[Any, jax.Array], jax.Array],
    source: sources.Source | None,
    class_names: Sequence[str],
    unreadable: Unreadable | None = None,
  ):
    """Binds what does not change from one evaluation to the next.

    Args:
      config: of the run.
      mesh: the devices.
      logits: (params by role, uint8 images) -> [B, N].
      source: held-out images, or None for no evaluation.
      class_names: of the logits.
      unreadable: is told of images that cannot be read; they count for nothing
        but `eval_unreadable`.
    """
    self._config, self._mesh, self._source = config, mesh, source
    self._class_names, self._unreadable = class_names, unreadable

    def apply(
      params: Any, batch: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
      return score(logits(params, batch["image"]), batch["label"])

    self._apply = jax.jit(apply, out_shardings=sharding.replicated(mesh))

  def __call__(self, params: Mapping[str, Any]) -> report.Report:
    """Loss, top-1 and top-5 on the held-out images."""
    if self._source is None:
      return report.Report({}, {}, "")
    scalars = self.scores(params).scalars()
    lines = [
      f"held-out {name}: {100 * scalars[f'eval_{key}']:.1f} %"
      for key, name in (("top1", "top-1"), ("top5", "top-5"))
      if f"eval_{key}" in scalars
    ]
    return report.Report(scalars, {}, "\n".join(lines))

  def scores(self, params: Mapping[str, Any]) -> Scores:
    """What became of each held-out image."""
    assert self._source is not None
    size = self._config.data.batch_size
    batches = pipeline.eval_batches(
      self._source,
      self._config.data,
      batch_size=size,
      rows=sharding.local_rows(self._mesh, size),
      unreadable=self._unreadable,
    )
    out, labels, unreadable = features.extract(
      self._apply, params, batches, mesh=self._mesh, batch_size=size
    )
    return Scores(labels, out["loss"], out["rank"], unreadable)
