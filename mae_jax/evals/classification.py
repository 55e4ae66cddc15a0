"""Accuracy of a classifier on held-out images, each counted once."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mae_jax.config import Config, DataConfig
from mae_jax.data import pipeline, sources
from mae_jax.data.bad_images import BadImages
from mae_jax.distributed import sharding
from mae_jax.evals import class_matching, class_metrics, extract, results

# Relative distance of a loss from that of equal probabilities.
_NEAR = 0.02
# Metrics that weight classes equally; see docs/reference/metrics.md.
BY_CLASS = {
  "eval_balanced_accuracy": "balanced accuracy",
  "eval_f1_macro": "macro F1",
  "eval_auc_macro": "macro AUC",
}
# Probabilities to keep for eval_auc_macro: 512 MiB on every host. ImageNet's
# 50,000 x 1,000 are 200 MB, and twice that for a moment.
_MAX_PROBABILITIES = 1 << 27


@dataclasses.dataclass(frozen=True)
class Scores:
  """The scores of N examples.

  Attributes:
    labels: [N].
    loss: [N] cross-entropy.
    rank: [N] number of classes that score above the correct one.
    prediction: [N] the class with the highest score; -1 if a score is NaN.
    confidence: [N] probability of the prediction; NaN without one.
    ids: [N] int64, the `id` of each example in its source.
    allowed: bool [K], the classes that may be predicted, of all K.
    probabilities: [N, K]; None if they are too large to keep.
    unreadable: number of further images that could not be read.
  """

  labels: np.ndarray
  loss: np.ndarray
  rank: np.ndarray
  prediction: np.ndarray
  confidence: np.ndarray
  ids: np.ndarray
  allowed: np.ndarray
  probabilities: np.ndarray | None = None
  unreadable: int = 0

  def means(self) -> dict[str, float]:
    """Returns means over the examples; empty without examples."""
    if not len(self.labels):
      return {}
    return {
      "eval_loss": float(self.loss.mean(dtype=np.float64)),
      "eval_top1": float((self.rank < 1).mean()),
      "eval_top5": float((self.rank < 5).mean()),
    }

  def scalars(self) -> dict[str, float]:
    """Returns all metrics; those that cannot be computed are missing."""
    result = self.means()
    if self.unreadable:
      result["eval_unreadable"] = float(self.unreadable)
    known = self.labels >= 0
    if known.any():
      labels = self.labels[known]
      balanced, f1 = class_metrics.by_class(labels, self.prediction[known])
      result |= {"eval_balanced_accuracy": balanced, "eval_f1_macro": f1}
      if self.probabilities is not None:
        auc = class_metrics.auc_macro(
          self.labels, self.probabilities, np.flatnonzero(self.allowed)
        )
        if auc is not None:
          result["eval_auc_macro"] = auc
    return result


def metrics(source: sources.Source, num_classes: int) -> tuple[str, ...]:
  """Names the metrics of an evaluation on these images, except counts."""
  top5 = ("eval_top5",) * (num_classes > 5)  # else it is always 1
  names = ("eval_top1", *top5, "eval_loss", *BY_CLASS)
  # Record files are not read for it: without an image of each class, the
  # evaluations lack eval_auc_macro.
  missing = (
    isinstance(source, sources.Indexed)
    and source.labels is not None
    and len(np.unique(source.labels)) < num_classes
  )
  if missing or not _keeps_probabilities(source, num_classes):
    return tuple(name for name in names if name != "eval_auc_macro")
  return names


def _keeps_probabilities(source: sources.Source, num_classes: int) -> bool:
  return source.num_examples * num_classes <= _MAX_PROBABILITIES


def score(
  logits: jax.Array, labels: jax.Array, allowed: jax.Array | None = None
) -> dict[str, jax.Array]:
  """Computes loss and rank [B] of logits [B, N] and labels [B].

  A NaN logit ranks above every other, so such a prediction is never correct.

  Args:
    logits: [B, N].
    labels: [B], the correct classes.
    allowed: bool [N], False for classes to ignore as if the head did not have
      them; None for all.
  """
  if allowed is not None:
    logits = jnp.where(allowed, logits, -jnp.inf)
  own = jnp.take_along_axis(logits, labels[:, None], axis=1)
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  loss = -jnp.take_along_axis(log_probs, labels[:, None], axis=1)
  above = ~(logits <= own)
  # Ties go to the class with the lower number, as in sorting.
  above |= (logits == own) & (jnp.arange(logits.shape[1]) < labels[:, None])
  return {"loss": loss[:, 0], "rank": above.sum(axis=1)}


def predict(
  logits: jax.Array, allowed: jax.Array, all_probabilities: bool
) -> dict[str, jax.Array]:
  """Computes prediction and confidence [B] of logits [B, N]; see `Scores`.

  Args:
    logits: [B, N].
    allowed: as in `score`.
    all_probabilities: whether to return the probabilities [B, N] too.
  """
  logits = jnp.where(allowed, logits, -jnp.inf)
  probabilities = jax.nn.softmax(logits.astype(jnp.float32))
  unknown = jnp.isnan(logits).any(axis=1)
  prediction = jnp.where(unknown, -1, jnp.argmax(logits, axis=1))
  result = {"prediction": prediction, "confidence": probabilities.max(axis=1)}
  if all_probabilities:
    result["probabilities"] = probabilities
  return result


class Scorer:
  """Scores images with a classifier; compiled once for any data set.

  Attributes:
    class_names: names of its classes.
  """

  def __init__(
    self,
    data: DataConfig,
    mesh: Mesh,
    logits: Callable[[Any, jax.Array], jax.Array],
    class_names: Sequence[str],
  ):
    """Compiles the classifier.

    Args:
      data: preprocessing and batch size.
      mesh: the devices.
      logits: (params by role, uint8 images) -> [B, N].
      class_names: names of the N classes.
    """
    self._data, self._mesh, self._class_names = data, mesh, class_names

    def apply(
      params: Any,
      batch: Mapping[str, jax.Array],
      numbers: jax.Array,
      allowed: jax.Array,
      keep: bool,
    ) -> dict[str, jax.Array]:
      scores = logits(params, batch["image"])
      labels = numbers[batch["label"]]
      result = score(scores, labels, allowed) | {"id": batch["id"]}
      return result | predict(scores, allowed, keep)

    self._apply = jax.jit(
      apply, static_argnums=4, out_shardings=sharding.replicated(mesh)
    )

  def __call__(
    self,
    params: Mapping[str, Any],
    source: sources.Source,
    *,
    allowed: np.ndarray | None = None,
    unreadable: BadImages | None = None,
  ) -> Scores:
    """Scores each image of a source.

    Args:
      params: parameters by role.
      source: labeled images.
      allowed: as in `score`.
      unreadable: collects the names of images that cannot be read.
    """
    numbers = class_matching.match_classes(
      source.class_names or (), self._class_names
    )
    if allowed is None:
      allowed = np.ones(len(self._class_names), bool)
    keep = _keeps_probabilities(source, len(self._class_names))
    out, labels, num_unreadable = extract.extract_source(
      lambda params, batch: self._apply(params, batch, numbers, allowed, keep),
      params,
      source,
      self._data,
      mesh=self._mesh,
      batch_size=self._data.batch_size,
      unreadable=unreadable,
    )
    # Images without a label keep the label -1.
    labels = np.where(labels < 0, -1, numbers[labels])
    ids = pipeline.decode_ids(out.pop("id"))
    return Scores(
      labels, ids=ids, allowed=allowed, unreadable=num_unreadable, **out
    )


class Evaluation:
  """An evaluation of a classifier on held-out images."""

  def __init__(
    self,
    config: Config,
    mesh: Mesh,
    logits: Callable[[Any, jax.Array], jax.Array],
    source: sources.Source | None,
    class_names: Sequence[str],
    unreadable: BadImages | None = None,
  ):
    """Stores the classifier and the images.

    Args:
      config: the run's settings.
      mesh: the devices.
      logits: (params by role, uint8 images) -> [B, N].
      source: held-out images, or None for no evaluation.
      class_names: names of the N classes.
      unreadable: collects the names of images that cannot be read; they count
        only in `eval_unreadable`.
    """
    self._source, self._unreadable = source, unreadable
    self._num_classes = len(class_names)
    self._scorer = Scorer(config.data, mesh, logits, class_names)

  def __call__(self, params: Mapping[str, Any]) -> results.Report:
    """Computes the metrics of the held-out images."""
    if self._source is None:
      return results.Report({}, {}, "")
    found = self._scorer(params, self._source, unreadable=self._unreadable)
    scalars = found.scalars()
    lines = [
      f"held-out {name}: {100 * scalars[f'eval_{key}']:.1f} %"
      for key, name, answers in (("top1", "top-1", 1), ("top5", "top-5", 5))
      if f"eval_{key}" in scalars and answers < self._num_classes
    ]
    if lines:
      guess = results.percent([results.guess(found.labels)])
      lines.append(f"{results.GUESS}: {guess}")
    classes = self._num_classes
    warning = results.doubt(found.labels, classes) or nothing_learned(
      found, classes
    )
    return results.Report(scalars, {}, "\n".join(lines), warning)


def nothing_learned(scores: Scores, classes: int) -> str:
  """Explains that a classifier is no better than a guess; "" if it is.

  A guess always names the largest class, or gives all classes one probability.
  """
  if not (scores.labels >= 0).any() or classes < 2:
    return ""
  found = scores.means()
  top1, loss = found["eval_top1"], found["eval_loss"]
  majority = results.guess(scores.labels)
  if top1 <= majority and top1 < 1:
    reason = (
      f"the held-out top-1 accuracy, {100 * top1:.1f} %, is not above "
      f"{100 * majority:.1f} %, the share of the largest class"
    )
  elif abs(loss / math.log(classes) - 1) < _NEAR:
    reason = (
      f"the held-out loss, {loss:.3f}, is that of equal probabilities for all "
      f"{classes} classes"
    )
  else:
    return ""
  return (
    f"{reason}: the classifier has learned next to nothing. Try a longer "
    "train.length, other values of optim.blr (4 times as much, a quarter), and "
    "more labeled images; check that init_from names a trained network"
  )
