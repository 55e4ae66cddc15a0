"""Accuracy of a classifier on held-out images, each counted once."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mae_jax import conversion
from mae_jax.config import Config, DataConfig, nearest
from mae_jax.data import sources
from mae_jax.data.bad_images import BadImages
from mae_jax.distributed import sharding
from mae_jax.evals import extract, results
from mae_jax.utils.errors import ConfigError, abbreviate


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


def score(
  logits: jax.Array, labels: jax.Array, allowed: jax.Array | None = None
) -> dict[str, jax.Array]:
  """Loss and rank [B] of logits [B, N] and labels [B].

  A logit that is not a number is above every other: nothing is right by it.

  Args:
    logits: of all classes.
    labels: the right ones.
    allowed: bool [N], False for classes that are left out, as if the head did
      not have them; None for all.
  """
  if allowed is not None:
    logits = jnp.where(allowed, logits, -jnp.inf)
  own = jnp.take_along_axis(logits, labels[:, None], axis=1)
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  loss = -jnp.take_along_axis(log_probs, labels[:, None], axis=1)
  above = ~(logits <= own)
  # As of sorting: of equal ones the first is taken.
  above |= (logits == own) & (jnp.arange(logits.shape[1]) < labels[:, None])
  return {"loss": loss[:, 0], "rank": above.sum(axis=1)}


def match(names: Sequence[str], known: Sequence[str]) -> np.ndarray:
  """The head's number of each class of the data, by name.

  Args:
    names: of the M classes of the data, in the order of their labels.
    known: of the N classes of the head.

  Returns:
    int32 [M], places in `known`; those of as many classes without names, which
    weights from elsewhere may have, are in the same order.

  Raises:
    ConfigError: if the head does not know a class.
  """
  if by_number(names, known):
    return np.arange(len(known), dtype=np.int32)
  counts = collections.Counter(known)
  twice = {name for name in names if counts[name] > 1}
  if twice:
    raise ConfigError(
      f"the checkpoint has {len(twice)} class names more than once, such as "
      f"{abbreviate(min(twice))}, so that names do not tell classes "
      "apart: convert it with other --class_names (python -m mae_jax convert)"
    )
  place = {name: number for number, name in enumerate(known)}
  unknown = [name for name in names if name not in place]
  if unknown:
    raise ConfigError(
      f"the data have the class {abbreviate(unknown[0])}, one of "
      f"{len(unknown)} of their {len(names)} that are not among the "
      f"{len(known)} which the checkpoint learned: "
      f"{nearest(unknown[0], known)}; give classes the names they "
      "had in training, and leave out others"
    )
  return np.array([place[name] for name in names], np.int32)


def by_number(names: Sequence[str], known: Sequence[str]) -> bool:
  """Whether the head's classes have no names, and are as many as the data's."""
  without = tuple(known) == conversion.default_class_names(len(known))
  return without and len(names) == len(known)


class Scorer:
  """Shows images to a classifier; compiled once, whatever the images are."""

  def __init__(
    self,
    data: DataConfig,
    mesh: Mesh,
    logits: Callable[[Any, jax.Array], jax.Array],
    class_names: Sequence[str],
  ):
    """Binds what does not change from one set of images to the next.

    Args:
      data: how images are prepared, and the batch.
      mesh: the devices.
      logits: (params by role, uint8 images) -> [B, N].
      class_names: of the logits.
    """
    self._data, self._mesh, self._class_names = data, mesh, class_names

    def apply(
      params: Any,
      batch: Mapping[str, jax.Array],
      numbers: jax.Array,
      allowed: jax.Array,
    ) -> dict[str, jax.Array]:
      labels = numbers[batch["label"]]
      return score(logits(params, batch["image"]), labels, allowed)

    self._apply = jax.jit(apply, out_shardings=sharding.replicated(mesh))

  def __call__(
    self,
    params: Mapping[str, Any],
    source: sources.Source,
    *,
    allowed: np.ndarray | None = None,
    unreadable: BadImages | None = None,
  ) -> Scores:
    """What became of each image.

    Args:
      params: by role.
      source: labeled images.
      allowed: see `score`.
      unreadable: is told of images that cannot be read.

    Raises:
      ConfigError: if there is a class that the classifier does not know.
    """
    numbers = match(source.class_names or (), self._class_names)
    if allowed is None:
      allowed = np.ones(len(self._class_names), bool)
    out, labels, lost = extract.of_source(
      lambda params, batch: self._apply(params, batch, numbers, allowed),
      params,
      source,
      self._data,
      mesh=self._mesh,
      batch_size=self._data.batch_size,
      unreadable=unreadable,
    )
    # Of an image without a label there is nothing to say.
    labels = np.where(labels < 0, -1, numbers[labels])
    return Scores(labels, out["loss"], out["rank"], lost)


class Evaluation:
  """Measures a classifier."""

  def __init__(
    self,
    config: Config,
    mesh: Mesh,
    logits: Callable[[Any, jax.Array], jax.Array],
    source: sources.Source | None,
    class_names: Sequence[str],
    unreadable: BadImages | None = None,
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
    self._source, self._unreadable = source, unreadable
    self._scorer = Scorer(config.data, mesh, logits, class_names)

  def __call__(self, params: Mapping[str, Any]) -> results.Report:
    """Loss, top-1 and top-5 on the held-out images."""
    if self._source is None:
      return results.Report({}, {}, "")
    scalars = self.scores(params).scalars()
    lines = [
      f"held-out {name}: {100 * scalars[f'eval_{key}']:.1f} %"
      for key, name in (("top1", "top-1"), ("top5", "top-5"))
      if f"eval_{key}" in scalars
    ]
    return results.Report(scalars, {}, "\n".join(lines))

  def scores(self, params: Mapping[str, Any]) -> Scores:
    """What became of each held-out image."""
    assert self._source is not None
    return self._scorer(params, self._source, unreadable=self._unreadable)
