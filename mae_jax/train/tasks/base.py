"""The parts that all tasks share: durations in steps, shardings, loading.

A task holds its train step and needs no data, only a `DataInfo`. So planning
for chips builds the same task without opening images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from mae_jax import checkpoints
from mae_jax.config import Config, Duration
from mae_jax.distributed import sharding
from mae_jax.models import classifiers, patchify
from mae_jax.train import init_from, optim
from mae_jax.train import step as step_lib
from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError, abbreviate

if TYPE_CHECKING:
  from mae_jax.evals import results
  from mae_jax.train.run_data import RunData

Batches = Iterator[dict[str, np.ndarray]]
Evaluator = Callable[[Mapping[str, Any]], "results.Report"]


@dataclasses.dataclass(frozen=True)
class DataInfo:
  """A description of a run's data.

  Attributes:
    num_examples: size of the training set.
    identity: distinguishes the training set from others, wherever it lies.
    class_names: names of the labels; () without labels.
    eval_class_names: the same of the held-out images; None without any.
    class_counts: number of training images of each class, if class weights
      need it; else ().
  """

  num_examples: int
  identity: Mapping[str, int | str] = dataclasses.field(default_factory=dict)
  class_names: Sequence[str] = ()
  eval_class_names: Sequence[str] | None = None
  class_counts: Sequence[int] = ()


class Task:
  """A network, its train step and its evaluation.

  The constructor checks every setting that can be checked without data.
  `prepare` completes the task with a description of the data.

  Attributes:
    info: the data.
    total_steps: number of steps of the whole training.
    lr_fn: learning rate by step.
    init: makes a new train state; only ever traced.
    train_step: maps state and global batch to the next state and metrics.
    flops_per_image: flops of a train step, counted on paper.
  """

  info: DataInfo
  total_steps: int
  lr_fn: optax.Schedule
  init: step_lib.Init
  train_step: step_lib.Step
  flops_per_image: int

  def __init__(self, config: Config, mesh: Mesh):
    """Checks the settings.

    Raises:
      ConfigError: if one cannot work.
    """
    self._config, self._mesh = config, mesh
    self._platform = mesh.devices.flat[0].platform
    step_lib.check_batch(config, mesh)

  def prepare(self, info: DataInfo) -> None:
    """Completes the task for these data.

    Raises:
      ConfigError: if a setting does not fit the data.
    """
    self.info = info
    self.total_steps = self._steps(self._config.train.length, "train.length")
    warmup = self._steps(self._config.optim.warmup, "optim.warmup")
    self.lr_fn = optim.learning_rate(
      self._config.optim, self.total_steps, warmup
    )
    built = self.build()
    self.init, self.train_step = built.init, built.train_step
    self.flops_per_image = built.flops_per_image

  def build(self) -> step_lib.TaskStep:
    """Builds initialization and train step; `prepare` calls it."""
    raise NotImplementedError

  def _steps(self, duration: str, field: str) -> int:
    return Duration.parse(duration, field).steps(
      self.info.num_examples, self._config.data.batch_size
    )

  def interval(self, duration: str, field: str) -> int:
    """Converts a Duration to steps between two events; 0 for never."""
    return Duration.parse(duration, field).interval(
      self.info.num_examples, self._config.data.batch_size
    )

  def state_shardings(
    self, state: checkpoints.TrainState
  ) -> checkpoints.TrainState:
    """Returns the sharding of each array of a state."""
    result: checkpoints.TrainState = sharding.state_shardings(self._mesh, state)
    return result

  def load(self, path: str, like: Any) -> Any:
    """Loads the parameters by role that a new run starts from.

    Args:
      path: a checkpoint, or weights of another format.
      like: ShapeDtypeStructs with shardings, as `init` makes them.

    Returns:
      The parameters; those that the checkpoint lacks are initialized.

    Raises:
      ConfigError: if the checkpoint does not fit.
    """
    raise NotImplementedError

  def fit(
    self, state: checkpoints.TrainState, data: RunData
  ) -> checkpoints.TrainState:
    """Fits what a new state learns from data before training: nothing here."""
    del data
    return state

  def train_batches(self, data: RunData, start_step: int) -> Batches:
    """Returns this process's rows of every global batch from `start_step`."""
    return data.train_batches(start_step)

  def evaluator(self, data: RunData) -> Evaluator:
    """Makes the evaluation that runs during and after training."""
    raise NotImplementedError

  def metrics(self, data: RunData) -> tuple[str, ...]:
    """Names the metrics of evaluations by which one can be the best."""
    del data
    return ()


class ClassificationTask(Task):
  """A task that learns labels, from an encoder that was pre-trained.

  Attributes:
    classifier: the network.
    grid: rows and columns of patches.
  """

  classifier: classifiers.FineTuned | classifiers.Probe

  def prepare(self, info: DataInfo) -> None:
    """Completes the task; see `Task.prepare`."""
    if not info.class_names:
      raise ConfigError(
        "the training images have no labels, which this task needs: put them "
        "in folders named by class, set data.label_column, or set data.name to "
        "a data set with labels"
      )
    if len(info.class_names) == 1:
      raise ConfigError(
        "all training images are of one class, "
        f"{abbreviate(info.class_names[0])}: every network would be 100 % "
        "correct. Add a folder of another class, or set data.path to the "
        "folder of the class folders"
      )
    if info.eval_class_names is not None and not info.eval_class_names:
      # As in ImageNet's own archive of validation images.
      raise ConfigError(
        f"the training images have {len(info.class_names)} classes and the "
        "held-out images none: sort them into folders with the names of the "
        "training classes, or set data.eval_split='' to run without them"
      )
    if info.eval_class_names not in (None, info.class_names):
      raise ConfigError(
        f"the held-out images have {len(info.eval_class_names)} classes "
        f"and the training images {len(info.class_names)}: use parts of one "
        "data set, or set data.eval_split=''"
      )
    self.classifier = classifiers.CLASSIFIERS[self._config.task](
      self._config, len(info.class_names), self._platform
    )
    self.grid = patchify.grid_size(
      self._config.data.image_size, self.classifier.encoder.patch_size
    )
    super().prepare(info)

  def build(self) -> step_lib.TaskStep:
    """Builds the step of this run's seed."""
    return self.seeded_step(self._config.train.seed)

  def seeded_step(self, seed: jax.Array | int) -> step_lib.TaskStep:
    """Builds initialization and train step for a seed, which may be traced."""
    raise NotImplementedError

  @property
  def class_weights(self) -> np.ndarray | None:
    """Weights of the K classes in the loss, float32 [K]; None if all are 1.

    They are scikit-learn's "balanced" ones: N images of K classes weigh
    N / (K x images of the class), which has mean 1 over the images. A batch is
    not normalized by its own sum of weights, so that micro-batches add up to
    the whole batch. A class without images weighs 1.
    """
    if not self._config.classify.class_weights or not self.info.class_counts:
      return None
    counts = np.asarray(self.info.class_counts)
    present = counts > 0
    balanced = counts.sum() / (present.sum() * np.maximum(counts, 1))
    return np.where(present, balanced, 1).astype(np.float32)

  def load_encoder(self, path: str, like: Any) -> Any:
    """Loads the encoder of any checkpoint, a tree like `like`."""
    network = self.classifier.encoder
    return init_from.load_encoder(
      path, like, self._mesh, self.grid, network, self._config
    )

  def load_network(self, path: str, like: Any) -> dict[str, Any]:
    """Loads what a run starts from, by name in the tree `like` of the role."""
    return {"encoder": self.load_encoder(path, like["encoder"])}

  def load(self, path: str, like: Any) -> Any:
    """Loads any checkpoint; what it does not give starts from scratch."""
    found = self.load_network(path, like[classifiers.MODEL])
    shardings = jax.tree.map(lambda x: x.sharding, like)
    new = jax.jit(lambda: self.init().params, out_shardings=shardings)()
    roles = new.keys() & {classifiers.MODEL, classifiers.AVERAGED}
    # Each role needs a copy of its own: the step donates its buffers.
    return new | {
      role: new[role] | jax.tree.map(jnp.copy, found) for role in roles
    }

  def evaluator(self, data: RunData) -> Evaluator:
    """Makes the evaluation: accuracy on the held-out images."""
    from mae_jax.evals import classification

    data.check_images()
    if data.eval_source is None and console.is_first():
      settings = self._config.data
      divides = settings.can_hold_out and settings.eval_split
      remedy = "data.holdout=0.1" if divides else "data.eval_split=SPLIT"
      console.notice(
        "no accuracy: no image is held out. The loss of training images does "
        "not show whether the classifier is right on others, nor which "
        f"checkpoint is the best; --config.{remedy} holds images out"
      )
    return classification.Evaluation(
      self._config,
      self._mesh,
      self.classifier.logits,
      data.eval_source,
      self.info.class_names,
      data.bad_images,
    )

  def metrics(self, data: RunData) -> tuple[str, ...]:
    """Names the metrics of evaluations; see `Task`."""
    from mae_jax.evals import classification

    source = data.eval_source
    if source is None:
      return ()
    return classification.metrics(source, len(self.info.class_names))
