"""The images of a run: opened and checked, as batches."""

from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh

from mae_jax.config import Config
from mae_jax.data import few_shot, pipeline, sources
from mae_jax.data.bad_images import BadImages
from mae_jax.distributed import sharding
from mae_jax.evals import eval_data
from mae_jax.train.tasks.base import DataInfo
from mae_jax.utils import console, startup


class RunData:
  """The images that a run trains on and those that it holds out.

  Attributes:
    info: a description for the task.
    train_source: training images.
    eval_source: held-out images, or None.
    bad_images: the images that could not be read so far.
  """

  def __init__(self, config: Config, mesh: Mesh):
    """Opens and checks the images.

    Raises:
      ConfigError: if there are none, or a setting does not fit them.
    """
    self._config, self._mesh = config, mesh
    data = config.data
    self.train_source = few_shot.limit_per_class(
      sources.open_source(data, "train"), data.shots, data.shots_seed
    )
    pipeline.check_readable(self.train_source, data)
    self.eval_source = sources.open_source(data, "eval")
    self._say_folders()
    self.bad_images = BadImages()
    held_out = self.eval_source
    self.info = DataInfo(
      num_examples=self.train_source.num_examples,
      identity=self.train_source.identity,
      class_names=self.train_source.class_names or (),
      eval_class_names=(
        None if held_out is None else held_out.class_names or ()
      ),
      class_counts=(
        few_shot.class_counts(self.train_source)
        if config.classify.class_weights and self.train_source.class_names
        else ()
      ),
    )
    # Only the pipeline knows whether the settings fit these images and this
    # process. No image is read until the first batch is taken.
    self.train_batches(0)
    startup.mark("data")

  def _say_folders(self) -> None:
    """Prints the folders, which names and `data.layout` choose."""
    train, held_out = self.train_source, self.eval_source
    if isinstance(train, sources.Records) or not train.where:
      return
    text = "no image is held out"
    if isinstance(held_out, sources.Indexed):
      text = f"{held_out.num_examples:,} held out, of {held_out.where}"
    if console.is_first():
      console.info(
        f"images: {train.num_examples:,} to train on, of {train.where}; {text}"
      )

  def train_batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
    """Returns this process's rows of every global batch from `start_step`."""
    data = self._config.data
    return pipeline.train_batches(
      self.train_source,
      data,
      seed=self._config.train.seed,
      rows=sharding.local_rows(self._mesh, data.batch_size),
      start_step=start_step,
      unreadable=self.bad_images,
    )

  def check_images(self) -> None:
    """Checks that the labels of record files are known.

    Raises:
      ConfigError: if those of some records are not.
    """
    data = self._config.data
    for name, source in (
      ("train", self.train_source),
      ("eval", self.eval_source),
    ):
      if isinstance(source, sources.Records):
        label = f"data.{name}_split={getattr(data, f'{name}_split')!r}"
        eval_data.check_images(eval_data.EvalSplit(source, label, data))
