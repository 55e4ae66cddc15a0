"""The train step of a run, without its data."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mae_jax.config import TASKS, Config
from mae_jax.distributed import sharding
from mae_jax.tools.plan import topology
from mae_jax.train import tasks
from mae_jax.train.tasks import base
from mae_jax.train.tasks.pretrain import PretrainTask
from mae_jax.utils.errors import ConfigError

IMAGENET = 1_281_167  # its training images
CLASSES = 1000  # and their classes


@dataclasses.dataclass(frozen=True)
class PlannedStep:
  """A task on devices that need not exist.

  Attributes:
    config: the settings.
    mesh: the devices.
    task: the task, as a run builds it.
  """

  config: Config
  mesh: Mesh
  task: base.Task

  @property
  def tokens(self) -> tuple[int, ...]:
    """Tokens of an image in the encoder and, in pre-training, the decoder."""
    if isinstance(self.task, PretrainTask):
      model = self.task.model
      length = model.decoder.grid[0] * model.decoder.grid[1]
      return 1 + model.num_encoder_tokens(length), 1 + length
    assert isinstance(self.task, base.ClassificationTask)
    rows, columns = self.task.grid
    return (1 + rows * columns,)

  def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch, as the data pipeline would make it."""
    data, where = self.config.data, sharding.batch_sharding(self.mesh)

    def rows(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
      shape = (data.batch_size, *shape)
      return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    return {
      "image": rows(
        jnp.float32 if data.value_range else jnp.uint8,
        *data.image_size,
        data.channels,
      ),
      "label": rows(jnp.int32),
      "readable": rows(jnp.bool_),
    }


def planned(
  config: Config, mesh: Mesh, num_examples: int, num_classes: int
) -> PlannedStep:
  """Builds the task that `main` would train.

  Args:
    config: the run.
    mesh: the devices to compile for.
    num_examples: size of the training set.
    num_classes: for tasks with labels; unused by others.

  Raises:
    ConfigError: if a setting cannot work.
  """
  if config.task not in TASKS:
    raise ConfigError(
      f"task={config.task!r} has no train step to plan: use one of "
      f"{', '.join(TASKS)}"
    )
  task = tasks.load(config.task)(config, mesh)
  names = tuple(map(str, range(num_classes)))
  task.prepare(base.DataInfo(num_examples, class_names=names))
  return PlannedStep(config, mesh, task)


def on_slice(
  config: Config,
  where: topology.Topology,
  num_examples: int = IMAGENET,
  num_classes: int = CLASSES,
) -> PlannedStep:
  """Builds the task on all devices of a slice, laid out as `config.mesh`."""
  mesh = sharding.make_mesh(config.mesh, where.devices)
  return planned(config, mesh, num_examples, num_classes)
