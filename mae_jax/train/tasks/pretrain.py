"""Pre-training: a masked autoencoder reconstructs masked patches."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax
from flax import traverse_util
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mae_jax import checkpoints
from mae_jax.config import Config
from mae_jax.distributed import sharding
from mae_jax.models import factory, mae, masking, patchify, targets
from mae_jax.train import init_from, objectives
from mae_jax.train import step as step_lib
from mae_jax.train.tasks import base
from mae_jax.utils import console, rng
from mae_jax.utils.errors import ConfigError

if TYPE_CHECKING:
  from mae_jax.train.run_data import RunData

FIT_IMAGES = 8192  # a target is fitted on these, rounded up to whole batches


def train_step(
  state: checkpoints.TrainState,
  batch: Mapping[str, jax.Array],
  *,
  models: Sequence[mae.MaskedAutoencoder],
  schedule: Callable[[jax.Array], jax.Array | int],
  objective: objectives.Reconstruction,
  lr_fn: optax.Schedule,
  config: Config,
) -> tuple[checkpoints.TrainState, dict[str, jax.Array]]:
  """Takes one step on one global batch.

  Args:
    state: before the step; its counter also determines masks and learning rate.
    batch: "image" [B, H, W, C] uint8, "readable" [B] bool.
    models: the network, once for each mask that training uses.
    schedule: maps the step to the index of its model.
    objective: the loss.
    lr_fn: learning rate by step.
    config: seed, normalization and accumulation.

  Returns:
    The state after the step and scalar metrics.
  """
  # One key for the whole global batch: the masks do not depend on the devices.
  key = rng.key(config.train.seed, "mask", state.step)

  def loss_and_grads(
    model: mae.MaskedAutoencoder, trained: Any, pixels: jax.Array
  ) -> tuple[Any, Any]:
    def loss_fn(trained: Any, part: tuple[jax.Array, Any]) -> Any:
      pixels, noise = part
      x = patchify.normalize(pixels, config.data.mean, config.data.std)
      params = state.params | trained
      return objective.loss(model, params, x, noise, state.step)

    noise = model.sample_noise(key, pixels.shape)
    return step_lib.loss_and_grads(
      loss_fn, trained, (pixels, noise), config.optim.accum_steps, has_aux=True
    )

  (loss, metrics), grads = jax.lax.switch(
    schedule(state.step),
    [functools.partial(loss_and_grads, model) for model in models],
    {role: state.params[role] for role in objective.optimizers},
    batch["image"],
  )
  state, values = step_lib.update(
    state, objective.optimizers, lr_fn(state.step), loss, grads
  )
  values |= metrics
  # With several terms the whole loss may be negative, where a spike has no
  # meaning.
  watched = values.get("loss_reconstruction", values["loss"])
  health = step_lib.update_health(
    state.health, watched, batch["readable"], config.train.spike_factor
  )
  state = dataclasses.replace(state, health=health)
  return state, values | step_lib.health_metrics(health)


class PretrainTask(base.Task):
  """Pre-training of a masked autoencoder."""

  def __init__(self, config: Config, mesh: Mesh):
    """Builds the network; see `base.Task`."""
    super().__init__(config, mesh)
    self.model = factory.masked_autoencoder(config, self._platform)
    self._models = factory.mask_variants(self.model, config)
    kind = objectives.OBJECTIVES[config.discriminator.type]
    self._objective = kind(config, self.model)

  def build(self) -> step_lib.TaskStep:
    """Builds initialization and train step."""
    config, objective = self._config, self._objective
    objective.set_total_steps(self.total_steps)
    models = list(itertools.chain(*self._models))

    def init() -> checkpoints.TrainState:
      params = objective.init(lambda name: rng.key(config.train.seed, name))
      return checkpoints.TrainState.create(
        params=params,
        opt_state={
          role: how.tx.init(params[role])
          for role, how in objective.optimizers.items()
        },
      )

    return step_lib.TaskStep(
      init=init,
      train_step=functools.partial(
        train_step,
        models=models,
        schedule=masking.MaskSchedule(
          config.objective.mask_schedule,
          config.train.seed,
          self.total_steps,
          num_ratios=len(self._models),
          num_strategies=len(self._models[0]),
        ),
        objective=objective,
        lr_fn=self.lr_fn,
        config=config,
      ),
      flops_per_image=round(
        statistics.mean(
          objective.flops(each, config.data.channels) for each in models
        )
      ),
    )

  def fit(
    self, state: checkpoints.TrainState, data: RunData
  ) -> checkpoints.TrainState:
    """Fits a target, such as principal components, before training.

    A target that `init_from` has is fitted already.

    Raises:
      ConfigError: if the run would keep a randomly initialized encoder.
    """
    settings = self._config
    if objectives.FROZEN[settings.objective.trainable] and not (
      settings.init_from
    ):
      raise ConfigError(
        f"objective.trainable={settings.objective.trainable!r} leaves the "
        "encoder as it starts, which here is at random: set init_from to a "
        "checkpoint of pre-training"
      )
    target = self.model.target
    if not isinstance(target, targets.Fitted):
      return state
    before = state.params[targets.FITTED]
    if any(np.any(jax.device_get(x)) for x in jax.tree.leaves(before)):
      return state
    after = jax.tree.map(
      lambda old, new: jax.device_put(new, old.sharding),
      before,
      {"target": self._fitted(target, self.train_batches(data, 0))},
    )
    params = state.params | {targets.FITTED: after}
    return dataclasses.replace(state, params=params)

  def _fitted(
    self, target: targets.Fitted, batches: base.Batches
  ) -> dict[str, np.ndarray]:
    """Fits a target on the first FIT_IMAGES images.

    Statistics are summed over all processes, in float32 within a batch and in
    float64 over batches.
    """
    data, mesh = self._config.data, self._mesh
    count = -(-FIT_IMAGES // data.batch_size)
    if console.is_first():
      console.info(
        f"fitting objective.target={self._config.objective.target!r} on "
        f"{count * data.batch_size} images"
      )

    def statistics_of(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
      x = patchify.normalize(batch["image"], data.mean, data.std)
      patches = patchify.patchify(x, self.model.encoder.patch_size)
      return target.statistics(patches, batch["readable"])

    sums = jax.jit(statistics_of, out_shardings=sharding.replicated(mesh))
    total: Any = None
    ahead = sharding.prefetch(mesh, batches, data.batch_size, data.prefetch)
    for _, batch in zip(range(count), ahead, strict=False):
      found = jax.tree.map(lambda x: np.asarray(x, np.float64), sums(batch))
      total = found if total is None else jax.tree.map(np.add, total, found)
    # Hosts may round differently.
    return multihost_utils.broadcast_one_to_all(target.fit(total))

  def load(self, path: str, like: Any) -> Any:
    """Loads an autoencoder, or an encoder alone; see `base.Task`.

    A discriminator is initialized, and the decoder that an encoder lacks.
    """
    found = traverse_util.flatten_dict(
      init_from.load_autoencoder(
        path, like, self._mesh, self.model, self._config
      )
    )
    shapes = traverse_util.flatten_dict(like)
    missing = {
      name: x.sharding for name, x in shapes.items() if name not in found
    }

    def init() -> dict[tuple[str, ...], jax.Array]:
      new = traverse_util.flatten_dict(self.init().params)
      return {name: new[name] for name in missing}

    new = jax.jit(init, out_shardings=missing)()
    return traverse_util.unflatten_dict(found | new)

  def evaluator(self, data: RunData) -> base.Evaluator:
    """Makes the evaluation: held-out loss, probes and pictures."""
    from mae_jax.evals import pretraining

    evaluation = pretraining.Evaluation(
      self._config,
      self._mesh,
      self.model,
      data.train_source,
      data.eval_source,
      data.bad_images,
    )
    if evaluation.unavailable and console.is_first():
      console.info(evaluation.unavailable)
    return evaluation

  def metrics(self, data: RunData) -> tuple[str, ...]:
    """Names the metrics of evaluations; see `base.Task`."""
    from mae_jax.evals import pretraining

    return pretraining.metrics(
      self._config, data.train_source, data.eval_source
    )
