"""What pre-training is worth: many small runs, as one.

The runs, here called members, differ in where they start (pre-trained, or from
scratch), in how many labels a class they see, and in their seed. They are one
state with a leading axis, so that the loop trains, saves and resumes them like
any other, and a program is compiled once for all. One after the other goes
through the step of the task they belong to, whole on one device: this is for
small networks and images.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mae_jax import checkpoints, conversion, distributed
from mae_jax.checkpoints import TrainState
from mae_jax.config import Config, lookup, overrides
from mae_jax.data import few_shot, pipeline
from mae_jax.distributed import sharding
from mae_jax.evals import (
  classification,
  extract,
  label_efficiency_report,
  results,
)
from mae_jax.models import classifiers
from mae_jax.train import init_from, loop, step
from mae_jax.train.tasks import base
from mae_jax.utils import signals
from mae_jax.utils.errors import ConfigError

PRETRAINED, SCRATCH = "pre-trained", "from scratch"

Kinds: TypeAlias = Mapping[
  str, Callable[[Config, Mesh], base.ClassificationTask]
]


class LabelEfficiencyTask:
  """The task as `loop.run` drives it.

  Attributes:
    members: the runs, those that are pre-trained first.
    total_steps: of each member.
    num_examples: of the whole training source.
    data_identity: likewise.
    class_names: of the labels.
    unreadable: the images that could not be read so far.
    flops_per_image: of a step, of all members.
  """

  def __init__(self, config: Config, mesh: Mesh, kinds: Kinds):
    """Builds everything that can fail for a wrong setting.

    Args:
      config: of the comparison.
      mesh: the devices.
      kinds: the tasks that members may have.

    Raises:
      ConfigError: on any setting that cannot work.
    """
    settings = config.label_efficiency
    kind = lookup(kinds, settings.task, "label_efficiency.task")
    if not settings.shots:
      raise ConfigError(
        "label_efficiency.shots=() compares nothing: give it numbers of "
        "images a class, such as 5,10,0 (0: all)"
      )
    self._config, self._mesh = config, mesh
    self._one = kind(dataclasses.replace(config, task=settings.task), mesh)
    if self._one.eval_source is None:
      raise ConfigError(
        "there are no held-out images to compare on: set data.eval_split, or "
        "make a folder val/"
      )
    first = config.train.seed
    self._streams = tuple(
      itertools.product(
        dict.fromkeys(settings.shots), range(first, first + settings.seeds)
      )
    )
    starts = (PRETRAINED, SCRATCH) if settings.scratch else (PRETRAINED,)
    self.members = tuple(
      label_efficiency_report.Trial(start, *stream)
      for start, stream in itertools.product(starts, self._streams)
    )
    self.total_steps = self._one.total_steps
    self.num_examples = self._one.num_examples
    self.data_identity = self._one.data_identity
    self.class_names = self._one.class_names
    self.unreadable = self._one.unreadable
    self.interval = self._one.interval
    self.flops_per_image = len(self.members) * self._one.flops_per_image

  @property
  def _seeds(self) -> jax.Array:
    return jnp.array([member.seed for member in self.members])

  def init(self) -> TrainState:
    """All members from scratch."""
    one = jax.lax.map(lambda seed: self._one.seeded(seed).init(), self._seeds)
    return TrainState.create(one.params, one.opt_state)

  def state_shardings(self, state: TrainState) -> TrainState:
    """Each device keeps its members, if there are as many for each."""
    whole = sharding.replicated(self._mesh)
    split = whole
    if len(self.members) % self._mesh.size == 0:
      split = NamedSharding(self._mesh, PartitionSpec(sharding.AXES))
    where = jax.tree.map(lambda _: split, state)
    return dataclasses.replace(
      where, step=whole, health=jax.tree.map(lambda _: whole, state.health)
    )

  def fit(self, state: checkpoints.TrainState) -> checkpoints.TrainState:
    """See `loop.Task`: nothing."""
    return state

  def load(self, path: str, like: Any) -> Any:
    """The encoder of a checkpoint, for those that are to be pre-trained."""
    where = sharding.replicated(self._mesh)
    encoder = init_from.load_encoder(
      path,
      jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=where),
        like[classifiers.MODEL]["encoder"],
      ),
      self._mesh,
      self._one.grid,
      self._one.classifier.encoder,
      conversion.ModelOverrides.from_config(self._config),
      channels=init_from.adaptable_channels(self._config),
    )
    # Only of the scratch members is what is drawn kept.
    count = len(self._streams)

    def start(encoder: Any) -> Any:
      drawn = self.init().params
      roles = drawn.keys() & {classifiers.MODEL, classifiers.AVERAGED}
      return drawn | {
        role: drawn[role]
        | {
          "encoder": jax.tree.map(
            lambda own, loaded: own.at[:count].set(loaded),
            drawn[role]["encoder"],
            encoder,
          )
        }
        for role in roles
      }

    shardings = jax.tree.map(lambda x: x.sharding, like)
    return jax.jit(start, out_shardings=shardings)(encoder)

  def train_batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
    """Each stream's rows of every batch, [B, streams, ...].

    Members that differ in their start alone see the same images.
    """
    data = self._config.data
    seeds = [seed for _, seed in self._streams]
    chosen = few_shot.few_shot_subsets(self._one.train_source, self._streams)
    return pipeline.stacked_train_batches(
      list(zip(chosen, seeds, strict=True)),
      data,
      rows=sharding.local_rows(self._mesh, data.batch_size),
      start_step=start_step,
      unreadable=self.unreadable,
    )

  def train_step(
    self, state: TrainState, batch: Mapping[str, jax.Array]
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of each member; metrics are means over them."""
    streams = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), batch)

    def one(
      member: tuple[Any, ...], shared: tuple[Any, ...]
    ) -> tuple[Any, ...]:
      params, opt_state, seed, number = member
      at, health, streams = shared
      own = jax.tree.map(lambda x: x[number], streams)
      before = TrainState(at, params, opt_state, health)
      after, values = self._one.seeded(seed).train_step(before, own)
      return after.params, after.opt_state, after.health, values

    number = jnp.arange(len(self.members)) % len(self._streams)
    params, opt_state, healths, values = self._each(
      one,
      (state.params, state.opt_state, self._seeds, number),
      (state.step, state.health, streams),
    )
    # A step that went wrong for one of them counts.
    health = jax.tree.map(lambda x: x.max(axis=0), healths)
    means = jax.tree.map(lambda x: x.mean(axis=0), values)
    after = TrainState(state.step + 1, params, opt_state, health)
    return after, means | step.health_metrics(health)

  def _each(self, one: Callable, members: Any, shared: Any) -> Any:
    """`one` of each member, device by device, one after the other."""
    count = len(self.members)
    # As many for each device: some are done twice.
    spread = np.arange(count + -count % self._mesh.size) % count
    if len(spread) > count:
      members = jax.tree.map(lambda x: x[spread], members)

    def some(members: Any, shared: Any) -> Any:
      return jax.lax.map(lambda member: one(member, shared), members)

    split = PartitionSpec(sharding.AXES)
    out = jax.shard_map(
      some,
      mesh=self._mesh,
      in_specs=(split, PartitionSpec()),
      out_specs=split,
      check_vma=False,
    )(members, shared)
    return jax.tree.map(lambda x: x[:count], out)

  @functools.cached_property
  def _score(self) -> Callable[[Any, Any], Any]:
    """(params, batch) -> what became of each example for each member."""

    def apply(params: Any, batch: Mapping[str, jax.Array]) -> Any:
      def one(params: Any, batch: Any) -> Any:
        logits = self._one.classifier.logits(params, batch["image"])
        return classification.score(logits, batch["label"])

      scores = self._each(one, params, batch)
      return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), scores)

    return jax.jit(apply, out_shardings=sharding.replicated(self._mesh))

  def evaluate(self, params: Mapping[str, Any]) -> results.Report:
    """Accuracy of each member on the held-out images, as table and plot."""
    source = self._one.eval_source
    assert source is not None
    out, labels, _ = extract.extract_source(
      self._score,
      params,
      source,
      self._config.data,
      mesh=self._mesh,
      batch_size=self._config.data.batch_size,
      unreadable=self.unreadable,
    )
    if not len(labels):
      return results.Report({}, {}, "no held-out image can be read")
    return label_efficiency_report.compare(
      self.members, (out["rank"] < 1).mean(axis=0)
    )


def run(
  config: Config,
  workdir: str,
  stop: signals.StopSignals,
  kinds: Kinds,
  pretrain: Callable[[Config, str, signals.StopSignals], None],
) -> None:
  """Compares, or goes on where an earlier run in `workdir` stopped.

  Without `init_from`, the recipe `label_efficiency.pretrain` is run first, in
  WORKDIR/pretrain, or goes on there.

  Args:
    config: of the comparison.
    workdir: where everything goes.
    stop: signals that ask the run to stop.
    kinds: the tasks that members may have.
    pretrain: runs a recipe of task "pretrain".

  Raises:
    ConfigError: if there is nothing to start from, and as the tasks do.
  """
  mesh = sharding.make_mesh(config.mesh)
  comparison_task = LabelEfficiencyTask(config, mesh, kinds)
  if not config.init_from and not _has_begun(workdir):
    first = _first(config)
    where = os.path.join(workdir, "pretrain")
    try:
      pretrain(first, where, stop)
    except ConfigError as error:  # no setting of the comparison's
      raise ConfigError(
        f"label_efficiency.pretrain={config.label_efficiency.pretrain}: {error}"
      ) from error
    config = dataclasses.replace(config, init_from=where)
  loop.run(comparison_task, config, mesh, workdir, stop)


def _has_begun(workdir: str) -> bool:
  try:
    checkpoints.find_step(workdir)
    begun = True
  except ConfigError:
    begun = False
  return bool(distributed.gather("yes" * begun)[0])  # the same on all hosts


def _first(config: Config) -> Config:
  recipe = config.label_efficiency.pretrain
  if not recipe:
    raise ConfigError(
      "there is nothing to start from: set --config.init_from=CHECKPOINT, or "
      "--config.label_efficiency.pretrain=RECIPE to train one first"
    )
  first = overrides.recipe(recipe)
  if first.task != "pretrain":
    raise ConfigError(
      f"label_efficiency.pretrain={recipe} is of task={first.task}: name a "
      "recipe that pre-trains, such as configs/digits.py"
    )
  for name in ("source", "name", "path", "channels", "image_size"):
    old, new = getattr(first.data, name), getattr(config.data, name)
    if old != new:
      raise ConfigError(
        f"label_efficiency.pretrain={recipe} has data.{name}={old!r}, and the "
        f"comparison {new!r}: pre-train on these images first, and set "
        "--config.init_from to that run"
      )
  # Measured is what comes of it.
  return dataclasses.replace(first, eval=config.eval, mesh=config.mesh)
