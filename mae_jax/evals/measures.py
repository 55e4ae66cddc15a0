"""What a checkpoint's head is worth on any images whose classes it knows."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh

from mae_jax.checkpoints import checksums
from mae_jax.config import Config, DataConfig, lookup, to_dict
from mae_jax.data import few_shot, sources
from mae_jax.data.bad_images import BadImages
from mae_jax.data.sources import tfds
from mae_jax.evals import (
  classification,
  eval_data,
  extract,
  load_model,
  partial_results,
  per_class,
  pretraining,
  probes,
  results,
  robustness,
)
from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError


class Network:
  """A checkpoint's head, which any images can be shown to.

  Attributes:
    class_names: of the head.
    about: a few words on it.
    facts: the same for other programs.
  """

  def __init__(self, config: Config, mesh: Mesh):
    """Reads the checkpoint.

    Raises:
      ConfigError: if eval.classes is not known; and see `suited.load`.
    """
    restricted = {
      "all": False,
      "present": True,
      "auto": bool(robustness.data_set(config.data)),
    }
    self._restricted = lookup(restricted, config.eval.classes, "eval.classes")
    checkpoint = load_model.load_for_evaluation(config, mesh, head=True)
    self.class_names = checkpoint.found.run.class_names
    self.about = f"the head of {checkpoint.step}"
    self.facts = checkpoint.facts | {"head_classes": len(self.class_names)}
    self._params = checkpoint.found.params
    self._scorer = classification.Scorer(
      config.data, mesh, checkpoint.classifier.logits, self.class_names
    )
    self._unreadable = BadImages()

  @property
  def checksum(self) -> int:
    """Of the parameters."""
    return checksums.checksum(self._params)

  def open(self, data: DataConfig) -> eval_data.EvalSplit:
    """The images to evaluate.

    Raises:
      ConfigError: if the head does not know one of their classes; and see
        `part.held_out`.
    """
    images = eval_data.held_out(data)
    names = images.class_names
    classification.match(names, self.class_names)
    if classification.by_number(names, self.class_names):
      console.warn(
        "the classes of the checkpoint have no names: they are taken to be in "
        "the order of the data's"
      )
    return images

  def score(
    self, images: eval_data.EvalSplit
  ) -> tuple[classification.Scores, int]:
    """What became of each image, and how many classes an answer could be.

    Raises:
      ConfigError: if no image can be read, or one has no label.
    """
    allowed = np.ones(len(self.class_names), bool)
    if self._restricted:
      allowed = self._present(images)
    scores = self._scorer(
      self._params,
      images.source,
      allowed=allowed,
      unreadable=self._unreadable,
    )
    eval_data.check_labels(scores.labels, images)
    if not len(scores.labels):
      raise ConfigError(
        f"none of the {images.about} can be read: the warnings above say why"
      )
    return scores, int(allowed.sum())

  def _present(self, images: eval_data.EvalSplit) -> np.ndarray:
    """Which classes of the head have a label, bool [N]."""
    numbers = classification.match(images.class_names, self.class_names)
    labels = few_shot.labels_present(images.source)
    eval_data.check_labels(labels, images)
    result = np.zeros(len(self.class_names), bool)
    result[numbers[labels]] = True
    return result


class Head:
  """Accuracy on the held-out images.

  Attributes:
    about: what is evaluated.
  """

  def __init__(self, config: Config, mesh: Mesh):
    """Opens checkpoint and images.

    Raises:
      ConfigError: on anything that cannot work.
    """
    self._network = Network(config, mesh)
    self._images = self._network.open(config.data)
    eval_data.check_images(self._images)
    self.about = f"{self._network.about} on {self._images.about}"

  def __call__(
    self, kept: partial_results.PartialResults
  ) -> results.EvalResult:
    """Top-1, top-5, loss, and the accuracy of each class."""
    del kept  # it is one part
    scores, answers = self._network.score(self._images)
    scalars = scores.scalars()
    classes = per_class.rows(scores, self._network.class_names)
    lines = [
      f"top-1 {100 * scalars['eval_top1']:.2f} %, "
      f"top-5 {100 * scalars['eval_top5']:.2f} %, "
      f"loss {scalars['eval_loss']:.4f}: {len(scores.labels)} images of "
      f"{len(classes)} classes, each answer one of {answers} classes"
    ]
    if scores.unreadable:
      lines.append(f"{scores.unreadable} more images could not be read")
    facts = self._network.facts | {
      "data": self._images.facts,
      "images": len(scores.labels),
      "classes_present": len(classes),
      "answers": answers,
    }
    return results.EvalResult(
      "\n".join([*lines, "", per_class.table(classes)]),
      scalars,
      facts,
      {"per_class.csv": per_class.table_file(classes)},
    )


class Corruptions:
  """Top-1 errors on all configs of ImageNet-C that are prepared.

  Attributes:
    about: what is evaluated.
  """

  def __init__(self, config: Config, mesh: Mesh):
    """Opens checkpoint and images.

    Raises:
      ConfigError: on anything that cannot work.
    """
    data = config.data
    self._network = Network(config, mesh)
    self._images = {
      key: self._network.open(robustness.one(data, key))
      for key in robustness.keys(data, tfds.prepared_configs(data))
    }
    first, *_ = self._images.values()
    eval_data.check_images(first)
    total = sum(each.source.num_examples for each in self._images.values())
    self.about = (
      f"{self._network.about} on {total} images of {data.name}, split "
      f"{data.eval_split!r}, {len(self._images)} configs, "
      f"{len(first.class_names)} classes"
    )
    self._facts = self._network.facts | {
      "data": first.facts | {"name": data.name}
    }
    settings = to_dict(config)
    self._identity = self._facts | {
      "parameters": self._network.checksum,
      "sets": {each.what: each.facts for each in self._images.values()},
      "settings": {key: settings[key] for key in ("data", "model", "eval")},
    }

  def __call__(
    self, kept: partial_results.PartialResults
  ) -> results.EvalResult:
    """A table, and the means if all is there."""
    kept.begin(self._identity)
    if kept.done and jax.process_index() == 0:
      console.info(f"{len(kept.done)} of the configs were done before")
    errors, counts, unreadable = {}, {}, 0
    for key, images in self._images.items():
      name = robustness.config_name(key)
      if name not in kept.done:
        kept.add(name, self._one(images))
      found = kept.done[name]
      errors[key], counts[key] = found["error"], found["images"]
      unreadable += found["unreadable"]
    result = robustness.Errors(errors)
    text, scalars = result.table(), result.scalars()
    if unreadable:
      text += f"\n{unreadable} images could not be read"
      scalars["eval_unreadable"] = float(unreadable)
    return results.EvalResult(
      text,
      scalars,
      self._facts | {"images": sum(counts.values())},
      {"corruptions.csv": result.csv_file(counts)},
    )

  def _one(self, images: eval_data.EvalSplit) -> dict[str, float]:
    scores, _ = self._network.score(images)
    error = 1 - scores.scalars()["eval_top1"]
    if jax.process_index() == 0:
      console.info(f"{images.what}: top-1 error {100 * error:.1f} %")
    return {
      "error": error,
      "images": len(scores.labels),
      "unreadable": scores.unreadable,
    }


class Features:
  """Probes of the encoder, as after pre-training.

  Attributes:
    about: what is evaluated.
  """

  def __init__(self, config: Config, mesh: Mesh):
    """Opens checkpoint and images.

    Raises:
      ConfigError: on anything that cannot work.
    """
    self._checkpoint = load_model.load_for_evaluation(config, mesh, head=False)
    self._config, self._mesh = config, mesh
    self._apply = pretraining.representations(
      config, mesh, self._checkpoint.encoder
    )
    data = config.data
    self._train = few_shot.limit_per_class(
      sources.open_source(data, "train"), data.shots, data.shots_seed
    )
    why = pretraining.left_out(
      config, self._train, sources.open_source(data, "eval")
    )
    if why:
      raise ConfigError(
        "eval.measure='features' needs training and held-out images of at "
        f"least two classes, and numbers of labels in eval.shots: {why}"
      )
    self._images = eval_data.held_out(data)
    eval_data.check_images(self._images)
    self.about = (
      f"frozen features of {self._checkpoint.step}, learning from "
      f"{self._seen} training images, on {self._images.about}"
    )
    self._unreadable = BadImages()

  @property
  def _seen(self) -> int:
    return self._train.subset(self._config.eval.max_train).num_examples

  def __call__(
    self, kept: partial_results.PartialResults
  ) -> results.EvalResult:
    """The table of probes."""
    del kept  # it is one part
    train, _ = self._split(self._train, self._config.eval.max_train)
    test, unreadable = self._split(self._images.source)
    for split in (train, test):
      eval_data.check_labels(split.labels, self._images)
      if not len(split.labels):
        raise ConfigError(
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
    return results.EvalResult(text, scalars, facts)

  def _split(
    self, source: sources.Source, limit: int = 0
  ) -> tuple[probes.Split, int]:
    found, labels, unreadable = extract.of_source(
      lambda params, batch: self._apply(params, batch["image"]),
      self._checkpoint.found.encoder_params,
      source,
      self._config.data,
      mesh=self._mesh,
      batch_size=self._config.data.batch_size,
      limit=limit,
      unreadable=self._unreadable,
    )
    return probes.Split(found, labels), unreadable
