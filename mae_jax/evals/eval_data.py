"""The images of an evaluation, with a description."""

import dataclasses
from typing import Any

import numpy as np

from mae_jax.config import DataConfig
from mae_jax.data import pipeline, sources
from mae_jax.utils.errors import ConfigError

_NUM_CHECKED = 8  # images to check before the long work


@dataclasses.dataclass(frozen=True)
class EvalSplit:
  """Labeled images to evaluate on.

  Attributes:
    source: the labeled images.
    what: a description for messages.
    data: the settings they were opened with.
  """

  source: sources.Source
  what: str
  data: DataConfig

  @property
  def class_names(self) -> tuple[str, ...]:
    """The names of the labels."""
    return self.source.class_names or ()

  @property
  def about(self) -> str:
    """A description with the numbers of images and classes."""
    return (
      f"{self.source.num_examples} images of {self.what}, "
      f"{len(self.class_names)} classes"
    )

  @property
  def info(self) -> dict[str, Any]:
    """A description as JSON content."""
    keys = (
      "source", "name", "path", "data_dir", "eval_split", "holdout",
      "eval_crop",
    )  # fmt: skip
    return {key: getattr(self.data, key) for key in keys} | {
      "what": self.what,
      "identity": dict(self.source.identity),
      "classes": len(self.class_names),
    }


def held_out(data: DataConfig) -> EvalSplit:
  """Opens the held-out split; for a folder without one, all images."""
  if not data.eval_split:
    raise ConfigError(
      "data.eval_split='' leaves nothing to evaluate: set "
      "--config.data.eval_split to the split to evaluate, such as test"
    )
  source = sources.open_source(data, "eval")
  if source is not None:
    what = f"{data.source}, the held-out split"
    if data.source == "tfds":
      what = f"{data.name}, split {data.eval_split!r}"
    elif isinstance(source, sources.Indexed) and source.where:
      share = f", the held-out {data.holdout:.2g}" * bool(data.holdout)
      what = source.where + share
    return EvalSplit(_labeled(source), what, data)
  return EvalSplit(
    _labeled(sources.open_source(data, "train")),
    f"{data.path} (it has no split such as val or test, so all training images "
    "are evaluated)",
    data,
  )


def check_images(split: EvalSplit) -> None:
  """Checks a few images, so that problems are reported before the long work."""
  pipeline.check_readable(split.source, split.data)
  number = min(_NUM_CHECKED, split.source.num_examples)
  for batch in pipeline.eval_batches(
    split.source,
    split.data,
    batch_size=number,
    rows=np.arange(number),
    limit=number,
  ):
    check_labels(batch["label"], split)


def check_labels(labels: np.ndarray, split: EvalSplit) -> None:
  """Refuses images without a label, which some splits of TFDS have."""
  if (labels < 0).any():
    raise ConfigError(
      f"images of {split.what} have no label: use another split, such as "
      "--config.data.eval_split=validation"
    )


def _labeled(source: sources.Source) -> sources.Source:
  if not source.class_names:
    raise ConfigError(
      "the images to evaluate have no labels: put them in folders named by "
      "class, set data.label_column, or set data.name to a data set with labels"
    )
  return source
