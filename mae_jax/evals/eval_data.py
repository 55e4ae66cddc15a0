"""The part of some data that is evaluated, and how it is called."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mae_jax.config import DataConfig
from mae_jax.data import pipeline, sources
from mae_jax.utils.errors import ConfigError

_LOOKED_AT = 8  # images, before the long work


@dataclasses.dataclass(frozen=True)
class EvalSplit:
  """Images that can be evaluated.

  Attributes:
    source: of labeled images.
    what: how they are called, for people.
    data: the section they were opened by.
  """

  source: sources.Source
  what: str
  data: DataConfig

  @property
  def class_names(self) -> tuple[str, ...]:
    """Of the labels."""
    return self.source.class_names or ()

  @property
  def about(self) -> str:
    """How many images of what, with how many classes."""
    return (
      f"{self.source.num_examples} images of {self.what}, "
      f"{len(self.class_names)} classes"
    )

  @property
  def facts(self) -> dict[str, Any]:
    """The same for other programs."""
    data = self.data
    return {
      "source": data.source,
      "name": data.name,
      "path": data.path,
      "data_dir": data.data_dir,
      "eval_split": data.eval_split,
      "eval_crop": data.eval_crop,
      "what": self.what,
      "identity": dict(self.source.identity),
      "classes": len(self.class_names),
    }


def held_out(data: DataConfig) -> EvalSplit:
  """Opens the held-out part; of a folder without one, what there is.

  Raises:
    ConfigError: if there is none, or it has no labels.
  """
  if not data.eval_split:
    raise ConfigError(
      "data.eval_split='' leaves nothing to evaluate: set "
      "--config.data.eval_split to the split to evaluate, such as test"
    )
  source = sources.open_source(data, "eval")
  if source is not None:
    called = {
      "tfds": f"{data.name}, split {data.eval_split!r}",
      "folder": f"{data.path}, its held-out part",
    }.get(data.source, f"{data.source}, the held-out part")
    return EvalSplit(_labeled(source), called, data)
  return EvalSplit(
    _labeled(sources.open_source(data, "train")),
    f"{data.path} (it has no folder val, validation or test: evaluated is all "
    "that training would take)",
    data,
  )


def check_images(part: EvalSplit) -> None:
  """Looks at a few images, so that what is wrong is told at once.

  Raises:
    ConfigError: if none of them can be read, or one has no label.
  """
  pipeline.check_readable(part.source, part.data)
  number = min(_LOOKED_AT, part.source.num_examples)
  for batch in pipeline.eval_batches(
    part.source,
    part.data,
    batch_size=number,
    rows=np.arange(number),
    limit=number,
  ):
    check_labels(batch["label"], part)


def check_labels(labels: np.ndarray, part: EvalSplit) -> None:
  """Refuses images without a label, which some splits of TFDS have.

  Raises:
    ConfigError: if there is one.
  """
  if (labels < 0).any():
    raise ConfigError(
      f"images of {part.what} have no label: name another split, such as "
      "--config.data.eval_split=validation"
    )


def _labeled(source: sources.Source) -> sources.Source:
  if not source.class_names:
    raise ConfigError(
      "the images to evaluate have no labels: put them in folders named by "
      "class, or set data.name to a data set with labels"
    )
  return source
