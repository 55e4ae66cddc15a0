"""The train step of a run, without its data."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mae_jax import checkpoints
from mae_jax.config import Config, Duration
from mae_jax.distributed import sharding
from mae_jax.models import classifiers, factory, mae, patchify
from mae_jax.tools.plan import topology
from mae_jax.train import optim
from mae_jax.train import step as program_lib
from mae_jax.train.tasks import finetune, linprobe, pretrain
from mae_jax.utils.errors import ConfigError

IMAGENET = 1_281_167  # its training images
CLASSES = 1000  # and their classes


@dataclasses.dataclass(frozen=True)
class PlannedStep:
  """A run as its devices see it.

  Attributes:
    config: the settings.
    mesh: the devices.
    program: what is compiled.
    total_steps: of the recipe.
    tokens: an image has in the encoder and, in pre-training, in the decoder.
  """

  config: Config
  mesh: Mesh
  program: program_lib.TaskStep
  total_steps: int
  tokens: tuple[int, ...]

  @property
  def init(self) -> program_lib.Init:
    """Of the program."""
    return self.program.init

  @property
  def train_step(self) -> program_lib.Step:
    """Of the program."""
    return self.program.train_step

  def state_shardings(
    self, state: checkpoints.TrainState
  ) -> checkpoints.TrainState:
    """As every run with data has them."""
    found: checkpoints.TrainState = sharding.state_shardings(self.mesh, state)
    return found

  def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    """What a step is given, as the data pipeline would."""
    data, where = self.config.data, sharding.batch_sharding(self.mesh)
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
      "image": ((*data.image_size, data.channels), jnp.uint8),
      "label": ((), jnp.int32),
      "readable": ((), jnp.bool_),
    }
    return {
      name: jax.ShapeDtypeStruct(
        (data.batch_size, *shape), dtype, sharding=where
      )
      for name, (shape, dtype) in shapes.items()
    }


def planned(
  config: Config, mesh: Mesh, num_examples: int, num_classes: int
) -> PlannedStep:
  """What `main` would build, were the data there.

  Args:
    config: of the run.
    mesh: devices, which need not exist.
    num_examples: of the training set.
    num_classes: of its labels, where the task needs any.

  Raises:
    ConfigError: on any setting that cannot work.
  """
  program_lib.check_batch(config, mesh)

  def steps(duration: str, field: str) -> int:
    return Duration.parse(duration, field).steps(
      num_examples, config.data.batch_size
    )

  total_steps = steps(config.train.length, "train.length")
  lr_fn = optim.learning_rate(
    config.optim, total_steps, steps(config.optim.warmup, "optim.warmup")
  )
  platform = mesh.devices.flat[0].platform
  if config.task == "pretrain":
    model = factory.masked_autoencoder(config, platform)
    program = pretrain.program(config, model, lr_fn, total_steps)
    return PlannedStep(config, mesh, program, total_steps, _tokens(model))
  if config.task not in classifiers.CLASSIFIERS:
    raise ConfigError(
      f"task={config.task!r} has no train step to plan: use one of pretrain, "
      f"{', '.join(classifiers.CLASSIFIERS)}"
    )
  if config.task == "linprobe":
    linprobe.check(config)
  classifier = classifiers.CLASSIFIERS[config.task](
    config, num_classes, platform
  )
  if isinstance(classifier, classifiers.FineTuned):
    seed = config.train.seed
    program = finetune.program(config, classifier, lr_fn, seed)
  else:
    program = linprobe.program(config, classifier, lr_fn, config.train.seed)
  rows, columns = patchify.grid_size(
    config.data.image_size, classifier.encoder.patch_size
  )
  tokens = (1 + rows * columns,)
  return PlannedStep(config, mesh, program, total_steps, tokens)


def on_slice(
  config: Config,
  where: topology.Topology,
  num_examples: int = IMAGENET,
  num_classes: int = CLASSES,
) -> PlannedStep:
  """The same on all devices of a slice, as `config.mesh` has them."""
  mesh = sharding.make_mesh(config.mesh, where.devices)
  return planned(config, mesh, num_examples, num_classes)


def _tokens(model: mae.MaskedAutoencoder) -> tuple[int, int]:
  length = model.decoder.grid[0] * model.decoder.grid[1]
  return 1 + model.num_encoder_tokens(length), 1 + length
