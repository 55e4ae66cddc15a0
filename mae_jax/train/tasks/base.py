"""What every task has: its images, its lengths in steps, and its batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from mae_jax import checkpoints, conversion
from mae_jax.config import Config, Duration
from mae_jax.data import few_shot, pipeline, sources
from mae_jax.data.bad_images import BadImages
from mae_jax.distributed import sharding
from mae_jax.evals import classification, eval_data
from mae_jax.models import classifiers, patchify
from mae_jax.train import init_from, optim
from mae_jax.train import step as program_lib
from mae_jax.utils import startup
from mae_jax.utils.errors import ConfigError


class ImageTask:
  """The images of a run, and how they become steps.

  Attributes:
    train_source: images to learn from.
    eval_source: held-out images, or None.
    num_examples: of the training source.
    data_identity: what makes two openings of it the same data.
    class_names: of its labels; () if there are none.
    unreadable: the images that could not be read so far.
    total_steps: where training ends.
    lr_fn: step -> learning rate.
  """

  def __init__(self, config: Config, mesh: Mesh):
    """Opens the sources.

    Raises:
      ConfigError: on any setting of data, lengths or batches that cannot work.
    """
    self._config, self._mesh = config, mesh
    startup.mark("devices")
    program_lib.check_batch(config, mesh)
    self.train_source = few_shot.limit_per_class(
      sources.open_source(config.data, "train"),
      config.data.shots,
      config.data.shots_seed,
    )
    pipeline.check_readable(self.train_source, config.data)
    self.eval_source = sources.open_source(config.data, "eval")
    self.num_examples = self.train_source.num_examples
    self.data_identity = self.train_source.identity
    self.class_names: Sequence[str] = self.train_source.class_names or ()
    self.unreadable = BadImages()
    self.total_steps = self.steps(config.train.length, "train.length")
    self.lr_fn: optax.Schedule = optim.learning_rate(
      config.optim,
      self.total_steps,
      self.steps(config.optim.warmup, "optim.warmup"),
    )
    # Read from when training starts. Made here, since only the pipeline knows
    # whether the settings of the data fit these images and this process.
    self.train_batches(0)
    startup.mark("data")

  def steps(self, duration: str, field: str) -> int:
    """A Duration of the config in steps."""
    return Duration.parse(duration, field).steps(
      self.num_examples, self._config.data.batch_size
    )

  def interval(self, duration: str, field: str) -> int:
    """A Duration between events in steps; 0 for never."""
    return Duration.parse(duration, field).interval(
      self.num_examples, self._config.data.batch_size
    )

  def state_shardings(
    self, state: checkpoints.TrainState
  ) -> checkpoints.TrainState:
    """Where each array of a state lives, by the rules of `sharding`."""
    result: checkpoints.TrainState = sharding.state_shardings(self._mesh, state)
    return result

  def fit(self, state: checkpoints.TrainState) -> checkpoints.TrainState:
    """See `loop.Task`: nothing."""
    return state

  def train_batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of every batch from `start_step` on."""
    data = self._config.data
    return pipeline.train_batches(
      self.train_source,
      data,
      seed=self._config.train.seed,
      rows=sharding.local_rows(self._mesh, data.batch_size),
      start_step=start_step,
      unreadable=self.unreadable,
    )


class ClassificationTask(ImageTask):
  """Learns to tell classes apart, from an encoder that was pre-trained.

  Attributes:
    classifier: what learns.
    grid: rows and columns of patches.
    evaluate: accuracy on held-out images.
  """

  classifier: classifiers.FineTuned | classifiers.Probe

  def __init__(self, config: Config, mesh: Mesh):
    """Opens the sources, and builds `classifiers.CLASSIFIERS[config.task]`.

    Raises:
      ConfigError: on any setting that cannot work, or data without labels.
    """
    super().__init__(config, mesh)
    _check_classes(self.train_source, self.eval_source)
    for name, source in (
      ("train", self.train_source),
      ("eval", self.eval_source),
    ):
      if isinstance(source, sources.Records):
        what = f"data.{name}_split={getattr(config.data, f'{name}_split')!r}"
        eval_data.check_images(eval_data.EvalSplit(source, what, config.data))
    build = classifiers.CLASSIFIERS[config.task]
    platform = mesh.devices.flat[0].platform
    self.classifier = build(config, len(self.class_names), platform)
    self.grid = patchify.grid_size(
      config.data.image_size, self.classifier.encoder.patch_size
    )
    self.evaluate = classification.Evaluation(
      config,
      mesh,
      self.classifier.logits,
      self.eval_source,
      self.class_names,
      self.unreadable,
    )
    program = self.seeded(config.train.seed)
    self.init, self.train_step = program.init, program.train_step
    self.flops_per_image = program.flops_per_image

  def seeded(self, seed: jax.Array | int) -> program_lib.TaskStep:
    """What is compiled of a run with some seed, which may be traced."""
    raise NotImplementedError

  def load(self, path: str, like: Any) -> Any:
    """The encoder of any checkpoint; the head is drawn."""
    model = like[classifiers.MODEL]
    encoder = init_from.load_encoder(
      path,
      model["encoder"],
      self._mesh,
      self.grid,
      self.classifier.encoder,
      conversion.ModelOverrides.from_config(self._config),
      channels=init_from.adaptable_channels(self._config),
    )
    shardings = jax.tree.map(lambda x: x.sharding, like)
    drawn = jax.jit(lambda: self.init().params, out_shardings=shardings)()
    roles = drawn.keys() & {classifiers.MODEL, classifiers.AVERAGED}
    # Each role has a copy of its own: the step takes its memory over.
    return drawn | {
      role: drawn[role] | {"encoder": jax.tree.map(jnp.copy, encoder)}
      for role in roles
    }


def _check_classes(
  train: sources.Source, held_out: sources.Source | None
) -> None:
  if not train.class_names:
    raise ConfigError(
      "the training images have no labels, which this task needs: put them in "
      "folders named by class, or set data.name to a data set with labels"
    )
  if held_out is not None and held_out.class_names != train.class_names:
    raise ConfigError(
      f"the held-out images have {len(held_out.class_names or ())} classes and "
      f"the training images {len(train.class_names)}: use parts of one data "
      "set, or set data.eval_split=''"
    )
