"""What the frozen features of any checkpoint are worth to a classifier."""

from __future__ import annotations

from jax.sharding import Mesh

from mae_jax import config as config_lib
from mae_jax.data import shots, sources
from mae_jax.data.unreadable import Unreadable
from mae_jax.evals import (
  features,
  few_labels,
  outcome,
  part,
  parts,
  pretraining,
  suited,
)


class Features:
  """Probes of the encoder, as after pre-training.

  Attributes:
    about: what is evaluated.
  """

  def __init__(self, config: config_lib.Config, mesh: Mesh):
    """Opens checkpoint and images.

    Raises:
      ConfigError: on anything that cannot work.
    """
    self._checkpoint = suited.load(config, mesh, head=False)
    self._config, self._mesh = config, mesh
    self._apply = pretraining.representations(
      config, mesh, self._checkpoint.encoder
    )
    data = config.data
    self._train = shots.few(
      sources.open_source(data, "train"), data.shots, data.shots_seed
    )
    why = pretraining.left_out(
      config, self._train, sources.open_source(data, "eval")
    )
    if why:
      raise config_lib.ConfigError(
        "eval.measure='features' needs training and held-out images of at "
        f"least two classes, and numbers of labels in eval.shots: {why}"
      )
    self._images = part.held_out(data)
    part.check_images(self._images)
    self.about = (
      f"frozen features of {self._checkpoint.step}, learning from "
      f"{self._seen} training images, on {self._images.about}"
    )
    self._unreadable = Unreadable()

  @property
  def _seen(self) -> int:
    return self._train.subset(self._config.eval.max_train).num_examples

  def __call__(self, kept: parts.Parts) -> outcome.Outcome:
    """The table of probes."""
    del kept  # it is one part
    train, _ = self._split(self._train, self._config.eval.max_train)
    test, unreadable = self._split(self._images.source)
    for split in (train, test):
      part.check_labels(split.labels, self._images)
      if not len(split.labels):
        raise config_lib.ConfigError(
          f"no image can be read, of those to learn from or of the "
          f"{self._images.about}: the warnings above say why"
        )
    text, scalars = pretraining.probes(train, test, self._config.eval)
    if unreadable:
      text += f"\n{unreadable} held-out images could not be read"
      scalars["eval_unreadable"] = float(unreadable)
    facts = self._checkpoint.facts | {
      "data": self._images.facts,
      "images": len(test.labels),
      "train_images": len(train.labels),
      "pooling": self._config.eval.pooling,
    }
    return outcome.Outcome(text, scalars, facts)

  def _split(
    self, source: sources.Source, limit: int = 0
  ) -> tuple[few_labels.Split, int]:
    found, labels, unreadable = features.of_source(
      lambda params, batch: self._apply(params, batch["image"]),
      self._checkpoint.found.encoder_params,
      source,
      self._config.data,
      mesh=self._mesh,
      batch_size=self._config.data.batch_size,
      limit=limit,
      unreadable=self._unreadable,
    )
    return few_labels.Split(found, labels), unreadable
