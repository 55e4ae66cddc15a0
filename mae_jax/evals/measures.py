"""The measures of `--config.task=evaluate`: accuracy, ImageNet-C and probes."""

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh

from mae_jax.checkpoints import checksums
from mae_jax.config import Config, DataConfig, lookup, to_dict
from mae_jax.data import few_shot, sources
from mae_jax.data.bad_images import BadImages
from mae_jax.data.sources import tfds
from mae_jax.evals import (
  class_matching,
  classification,
  eval_data,
  extract,
  load_model,
  partial_results,
  per_class,
  predictions,
  pretraining,
  probes,
  results,
  robustness,
)
from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError


def _where(source: sources.Source) -> str:
  folder = source.where if isinstance(source, sources.Indexed) else ""
  return f" of {folder}" if folder else ""


class TrainedHead:
  """A checkpoint's encoder and head, to score images with.

  Attributes:
    params: parameters by role.
    data: the images, prepared for the network.
    class_names: classes of the head.
    about: a description for messages.
    info: a description as JSON content.
  """

  def __init__(self, config: Config, mesh: Mesh):
    restricted = {
      "all": False,
      "present": True,
      "auto": bool(robustness.data_set(config.data)),
    }
    self._present_only = lookup(restricted, config.eval.classes, "eval.classes")
    checkpoint = load_model.load_for_evaluation(config, mesh, head=True)
    self.data = checkpoint.config.data
    self.class_names = checkpoint.class_names
    self.about = f"the head of {checkpoint.path}"
    self.info = checkpoint.info | {"head_classes": len(self.class_names)}
    self.params = checkpoint.params
    self._scorer = classification.Scorer(
      self.data, mesh, checkpoint.classifier.logits, self.class_names
    )
    self._unreadable = BadImages()

  def open(self, data: DataConfig) -> eval_data.EvalSplit:
    """Opens the images to evaluate."""
    images = eval_data.held_out(data)
    names = images.class_names
    class_matching.match_classes(names, self.class_names)
    if note := class_matching.assumption(names, self.class_names):
      console.warn(note)
    return images

  def score(
    self, images: eval_data.EvalSplit
  ) -> tuple[classification.Scores, int]:
    """Scores each image; returns the number of allowed classes too."""
    allowed = np.ones(len(self.class_names), bool)
    if self._present_only:
      allowed = self._present(images)
    scores = self._scorer(
      self.params, images.source, allowed=allowed, unreadable=self._unreadable
    )
    eval_data.check_labels(scores.labels, images)
    if not len(scores.labels):
      raise ConfigError(
        f"none of the {images.about} can be read: the warnings above say why"
      )
    return scores, int(allowed.sum())

  def _present(self, images: eval_data.EvalSplit) -> np.ndarray:
    """Marks the classes of the head that have images, bool [N]."""
    numbers = class_matching.match_classes(images.class_names, self.class_names)
    labels = few_shot.labels_present(images.source)
    eval_data.check_labels(labels, images)
    result = np.zeros(len(self.class_names), bool)
    result[numbers[labels]] = True
    return result


class HeadAccuracy:
  """The accuracy of the head on held-out images.

  Attributes:
    about: a description for messages.
  """

  def __init__(self, config: Config, mesh: Mesh):
    self._head = TrainedHead(config, mesh)
    self._images = self._head.open(self._head.data)
    eval_data.check_images(self._images)
    self.about = f"{self._head.about} on {self._images.about}"

  def __call__(
    self, partial: partial_results.PartialResults
  ) -> results.EvalResult:
    """Computes the metrics, the accuracy of each class, and predictions."""
    del partial
    scores, answers = self._head.score(self._images)
    scalars = scores.scalars()
    classes = per_class.rows(scores, self._head.class_names)
    lines = [
      f"top-1 {100 * scalars['eval_top1']:.2f} %, "
      f"top-5 {100 * scalars['eval_top5']:.2f} %, "
      f"loss {scalars['eval_loss']:.4f}: {len(scores.labels)} images of "
      f"{len(classes)} classes, predicted among {answers} classes"
    ]
    lines.append(
      ", ".join(
        f"{name} {scalars[key]:.4f}"
        for key, name in classification.BY_CLASS.items()
        if key in scalars
      )
    )
    if scores.unreadable:
      lines.append(f"{scores.unreadable} more images could not be read")
    names = self._head.class_names
    files, left_out = predictions.files(scores, self._images.source, names)
    if left_out:
      lines.append(left_out)
    if why := results.doubt(scores.labels, answers):
      lines.append(f"warning: {why}")
    info = self._head.info | {
      "data": self._images.info,
      "images": len(scores.labels),
      "classes_present": len(classes),
      "answers": answers,
    }
    return results.EvalResult(
      "\n".join([*lines, "", per_class.table(classes)]),
      scalars,
      info,
      {"per_class.csv": per_class.table_file(classes)} | files,
    )


class CorruptionErrors:
  """The top-1 errors on all prepared configs of ImageNet-C.

  Attributes:
    about: a description for messages.
  """

  def __init__(self, config: Config, mesh: Mesh):
    self._head = TrainedHead(config, mesh)
    data = self._head.data
    self._images = {
      key: self._head.open(robustness.corruption_data(data, key))
      for key in robustness.corruption_keys(data, tfds.prepared_configs(data))
    }
    first, *_ = self._images.values()
    eval_data.check_images(first)
    total = sum(each.source.num_examples for each in self._images.values())
    self.about = (
      f"{self._head.about} on {total} images of {data.name}, split "
      f"{data.eval_split!r}, {len(self._images)} configs, "
      f"{len(first.class_names)} classes"
    )
    self._facts = self._head.info | {"data": first.info | {"name": data.name}}
    settings = to_dict(config)
    self._identity = self._facts | {
      "parameters": checksums.checksum(self._head.params),
      "sets": {each.what: each.info for each in self._images.values()},
      "settings": {key: settings[key] for key in ("data", "model", "eval")},
    }

  def __call__(
    self, partial: partial_results.PartialResults
  ) -> results.EvalResult:
    """Computes a table, and the published means if no config is missing."""
    partial.resume(self._identity)
    if partial.done and jax.process_index() == 0:
      console.info(f"{len(partial.done)} configs were evaluated before")
    errors, counts, unreadable = {}, {}, 0
    for key, images in self._images.items():
      name = robustness.config_name(key)
      if name not in partial.done:
        partial.add(name, self._evaluate(images))
      found = partial.done[name]
      errors[key], counts[key] = found["error"], found["images"]
      unreadable += found["unreadable"]
    result = robustness.CorruptionErrors(errors)
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

  def _evaluate(self, images: eval_data.EvalSplit) -> dict[str, float]:
    scores, _ = self._head.score(images)
    error = 1 - scores.scalars()["eval_top1"]
    if jax.process_index() == 0:
      console.info(f"{images.what}: top-1 error {100 * error:.1f} %")
    return {
      "error": error,
      "images": len(scores.labels),
      "unreadable": scores.unreadable,
    }


class FeatureProbes:
  """Probes of the encoder's frozen features, as after pre-training.

  Attributes:
    about: a description for messages.
  """

  def __init__(self, config: Config, mesh: Mesh):
    self._checkpoint = load_model.load_for_evaluation(config, mesh, head=False)
    config = dataclasses.replace(config, data=self._checkpoint.config.data)
    self._config, self._mesh = config, mesh
    self._apply = pretraining.representations(
      config, mesh, self._checkpoint.encoder
    )
    data = config.data
    self._train = few_shot.limit_per_class(
      sources.open_source(data, "train"), data.shots, data.shots_seed
    )
    why = pretraining.unavailable(
      config, self._train, sources.open_source(data, "eval")
    )
    if why:
      raise ConfigError(
        "eval.measure='features' needs training and held-out images of at "
        f"least two classes, and eval.shots must not be empty: {why}"
      )
    self._images = eval_data.held_out(data)
    eval_data.check_images(self._images)
    self.about = (
      f"frozen features of {self._checkpoint.path}, with probes trained on "
      f"{self._train.subset(config.eval.max_train).num_examples} images"
      f"{_where(self._train)}, on "
      f"{self._images.about}"
    )
    self._unreadable = BadImages()

  def __call__(
    self, partial: partial_results.PartialResults
  ) -> results.EvalResult:
    """Computes the table of probes."""
    del partial
    train, _ = self._split(self._train, self._config.eval.max_train)
    test, unreadable = self._split(self._images.source)
    for split in (train, test):
      eval_data.check_labels(split.labels, self._images)
      if not len(split.labels):
        raise ConfigError(
          "no training image can be read, or none of the "
          f"{self._images.about}: the warnings above say why"
        )
    text, scalars = pretraining.probe_table(train, test, self._config.eval)
    if unreadable:
      text += f"\n{unreadable} held-out images could not be read"
      scalars["eval_unreadable"] = float(unreadable)
    info = self._checkpoint.info | {
      "data": self._images.info,
      "images": len(test.labels),
      "train_images": len(train.labels),
      "pooling": self._config.eval.pooling,
    }
    return results.EvalResult(text, scalars, info)

  def _split(
    self, source: sources.Source, limit: int = 0
  ) -> tuple[probes.Split, int]:
    found, labels, unreadable = extract.extract_source(
      lambda params, batch: self._apply(params, batch["image"]),
      self._checkpoint.encoder_params,
      source,
      self._config.data,
      mesh=self._mesh,
      batch_size=self._config.data.batch_size,
      limit=limit,
      unreadable=self._unreadable,
    )
    return probes.Split(found, labels), unreadable
