"""Label efficiency: many small runs, with and without pre-training, as one.

The runs, called trials, differ in their start (pre-trained, or from scratch),
in the number of labels of each class, and in their seed. They are one state
with a leading axis, so that the loop trains, saves and resumes them like any
other, and one program is compiled for all. The trials go one after the other
through the step of their task, each whole on one device: this is for small
networks and images.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mae_jax import checkpoints, distributed
from mae_jax.checkpoints import TrainState
from mae_jax.config import Config, overrides
from mae_jax.distributed import sharding
from mae_jax.evals import classification, label_efficiency_report, results
from mae_jax.models import classifiers
from mae_jax.train import loop, tasks
from mae_jax.train import step as step_lib
from mae_jax.train.sinks.callback import OnMetrics
from mae_jax.train.tasks import base
from mae_jax.utils import signals
from mae_jax.utils.errors import ConfigError

if TYPE_CHECKING:
  from mae_jax.train.run_data import RunData

PRETRAINED, SCRATCH = "pre-trained", "from scratch"


class LabelEfficiencyTask(base.Task):
  """All trials as one task.

  Attributes:
    trials: the runs, those that are pre-trained first.
  """

  def __init__(self, config: Config, mesh: Mesh):
    """Builds the task of the trials; see `base.Task`.

    Raises:
      ConfigError: if a setting cannot work.
    """
    super().__init__(config, mesh)
    settings = config.label_efficiency
    if not settings.shots:
      raise ConfigError(
        "label_efficiency.shots=() compares nothing: give it numbers of "
        "images a class, such as 5,10,0 (0: all)"
      )
    if config.classify.class_weights:
      raise ConfigError(
        f"classify.class_weights={config.classify.class_weights!r} is a "
        "setting of task=finetune and task=linprobe, which trials do not "
        "have: leave it empty"
      )
    self._one: base.ClassificationTask = tasks.load(settings.task)(
      dataclasses.replace(config, task=settings.task), mesh
    )
    first = config.train.seed
    self._streams = tuple(
      itertools.product(
        dict.fromkeys(settings.shots), range(first, first + settings.seeds)
      )
    )
    starts = (PRETRAINED, SCRATCH) if settings.scratch else (PRETRAINED,)
    self.trials = tuple(
      label_efficiency_report.Trial(start, *stream)
      for start, stream in itertools.product(starts, self._streams)
    )

  def prepare(self, info: base.DataInfo) -> None:
    """Completes the task; see `base.Task`."""
    self._one.prepare(info)
    if info.eval_class_names is None:
      raise ConfigError(
        "there are no held-out images to compare on: set data.eval_split, or "
        "make a folder val/"
      )
    super().prepare(info)

  def build(self) -> step_lib.TaskStep:
    """Builds the step of all trials."""
    flops = len(self.trials) * self._one.flops_per_image
    return step_lib.TaskStep(self._init, self._train_step, flops)

  @property
  def _seeds(self) -> jax.Array:
    return jnp.array([trial.seed for trial in self.trials])

  def _init(self) -> TrainState:
    one = jax.lax.map(
      lambda seed: self._one.seeded_step(seed).init(), self._seeds
    )
    return TrainState.create(one.params, one.opt_state)

  def state_shardings(self, state: TrainState) -> TrainState:
    """Splits the trials over the devices, if that gives equal parts."""
    whole = sharding.replicated(self._mesh)
    split = whole
    if len(self.trials) % self._mesh.size == 0:
      split = NamedSharding(self._mesh, PartitionSpec(sharding.AXES))
    where = jax.tree.map(lambda _: split, state)
    return dataclasses.replace(
      where, step=whole, health=jax.tree.map(lambda _: whole, state.health)
    )

  def load(self, path: str, like: Any) -> Any:
    """Loads an encoder for the trials that are pre-trained."""
    where = sharding.replicated(self._mesh)
    like_one = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=where),
      like[classifiers.MODEL]["encoder"],
    )
    encoder = self._one.load_encoder(path, like_one)
    # The trials from scratch keep their random initialization.
    count = len(self._streams)

    def start(encoder: Any) -> Any:
      new = self.init().params
      roles = new.keys() & {classifiers.MODEL, classifiers.AVERAGED}
      return new | {
        role: new[role]
        | {
          "encoder": jax.tree.map(
            lambda own, loaded: own.at[:count].set(loaded),
            new[role]["encoder"],
            encoder,
          )
        }
        for role in roles
      }

    shardings = jax.tree.map(lambda x: x.sharding, like)
    return jax.jit(start, out_shardings=shardings)(encoder)

  def train_batches(self, data: RunData, start_step: int) -> base.Batches:
    """Returns each stream's rows of every batch, [B, streams, ...].

    Trials that differ in their start alone see the same images.
    """
    # TensorFlow takes seconds to import.
    from mae_jax.data import few_shot, pipeline

    settings = self._config.data
    seeds = [seed for _, seed in self._streams]
    chosen = few_shot.few_shot_subsets(data.train_source, self._streams)
    return pipeline.stacked_train_batches(
      list(zip(chosen, seeds, strict=True)),
      settings,
      rows=sharding.local_rows(self._mesh, settings.batch_size),
      start_step=start_step,
      unreadable=data.bad_images,
    )

  def _train_step(
    self, state: TrainState, batch: Mapping[str, jax.Array]
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes one step of each trial; metrics are means over the trials."""
    streams = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), batch)

    def one(trial: tuple[Any, ...], shared: tuple[Any, ...]) -> tuple[Any, ...]:
      params, opt_state, seed, number = trial
      at, health, streams = shared
      own = jax.tree.map(lambda x: x[number], streams)
      before = TrainState(at, params, opt_state, health)
      after, values = self._one.seeded_step(seed).train_step(before, own)
      return after.params, after.opt_state, after.health, values

    number = jnp.arange(len(self.trials)) % len(self._streams)
    params, opt_state, healths, values = self._map_trials(
      one,
      (state.params, state.opt_state, self._seeds, number),
      (state.step, state.health, streams),
    )
    # A step that failed in one trial counts.
    health = jax.tree.map(lambda x: x.max(axis=0), healths)
    means = jax.tree.map(lambda x: x.mean(axis=0), values)
    after = TrainState(state.step + 1, params, opt_state, health)
    return after, means | step_lib.health_metrics(health)

  def _map_trials(self, one: Callable, trials: Any, shared: Any) -> Any:
    """Applies `one` to each trial, on each device one after the other."""
    count = len(self.trials)
    # Equal numbers for all devices: some trials are computed twice.
    spread = np.arange(count + -count % self._mesh.size) % count
    if len(spread) > count:
      trials = jax.tree.map(lambda x: x[spread], trials)

    def some(trials: Any, shared: Any) -> Any:
      return jax.lax.map(lambda trial: one(trial, shared), trials)

    split = PartitionSpec(sharding.AXES)
    out = jax.shard_map(
      some,
      mesh=self._mesh,
      in_specs=(split, PartitionSpec()),
      out_specs=split,
      check_vma=False,
    )(trials, shared)
    return jax.tree.map(lambda x: x[:count], out)

  @functools.cached_property
  def _score(self) -> Callable[[Any, Any], Any]:
    """Maps (params, batch) to the scores of each example in each trial."""

    def apply(params: Any, batch: Mapping[str, jax.Array]) -> Any:
      def one(params: Any, batch: Any) -> Any:
        logits = self._one.classifier.logits(params, batch["image"])
        return classification.score(logits, batch["label"])

      scores = self._map_trials(one, params, batch)
      return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), scores)

    return jax.jit(apply, out_shardings=sharding.replicated(self._mesh))

  def evaluator(self, data: RunData) -> base.Evaluator:
    """Makes the evaluation: accuracy of each trial, as table and plot."""
    from mae_jax.evals import extract

    data.check_images()
    source = data.eval_source
    assert source is not None

    def evaluate(params: Mapping[str, Any]) -> results.Report:
      out, labels, _ = extract.extract_source(
        self._score,
        params,
        source,
        self._config.data,
        mesh=self._mesh,
        batch_size=self._config.data.batch_size,
        unreadable=data.bad_images,
      )
      if not len(labels):
        return results.Report({}, {}, "no held-out image can be read")
      found = label_efficiency_report.compare(
        self.trials, (out["rank"] < 1).mean(axis=0)
      )
      if why := results.doubt(labels, len(self._one.info.class_names)):
        found = dataclasses.replace(found, text=f"{found.text}\nwarning: {why}")
      return found

    return evaluate


def run(
  config: Config,
  workdir: str,
  stop: signals.StopSignals,
  on_metrics: OnMetrics | None = None,
) -> None:
  """Trains all trials, or resumes them.

  Without `init_from`, the recipe `label_efficiency.pretrain` is trained first,
  in WORKDIR/pretrain.

  Args:
    config: settings of the run.
    workdir: directory of everything that is written.
    stop: signals that ask the run to stop.
    on_metrics: called on process 0 with each record that is logged.

  Raises:
    ConfigError: if there is nothing to start from, and as the tasks do.
  """
  LabelEfficiencyTask(config, sharding.make_mesh(config.mesh))  # checks first
  if not config.init_from and not _has_begun(workdir):
    first = _pretrain_config(config)
    where = os.path.join(workdir, "pretrain")
    try:
      loop.train(tasks.load("pretrain"), first, where, stop, on_metrics)
    except ConfigError as error:  # no setting of this task
      raise ConfigError(
        f"label_efficiency.pretrain={config.label_efficiency.pretrain}: {error}"
      ) from error
    config = dataclasses.replace(config, init_from=where)
  loop.train(LabelEfficiencyTask, config, workdir, stop, on_metrics)


def _has_begun(workdir: str) -> bool:
  try:
    checkpoints.find_step(workdir)
    begun = True
  except ConfigError:
    begun = False
  return bool(distributed.from_first(begun))  # the same on all hosts


def _pretrain_config(config: Config) -> Config:
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
      "recipe that pre-trains, such as digits"
    )
  for name in (
    "source", "name", "path", "layout", "holdout", "channels", "image_size",
    "value_range",
  ):  # fmt: skip
    old, new = getattr(first.data, name), getattr(config.data, name)
    if old != new:
      raise ConfigError(
        f"label_efficiency.pretrain={recipe} has data.{name}={old!r}, and this "
        f"config {new!r}: pre-train on these images first, and set "
        "--config.init_from to that run"
      )
  return dataclasses.replace(first, eval=config.eval, mesh=config.mesh)
