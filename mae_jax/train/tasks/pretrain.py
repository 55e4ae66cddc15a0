"""Masked pre-training: a new state and the train step."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mae_jax import checkpoints, conversion
from mae_jax.config import Config, lookup
from mae_jax.distributed import sharding
from mae_jax.evals import pretraining
from mae_jax.models import factory, mae, patchify, targets
from mae_jax.train import fit_target, init_from, loop, objectives
from mae_jax.train import step as program_lib
from mae_jax.train import step as update
from mae_jax.train.tasks import base
from mae_jax.utils import rng, signals
from mae_jax.utils.errors import ConfigError


def train_step(
  state: checkpoints.TrainState,
  batch: Mapping[str, jax.Array],
  *,
  models: Sequence[mae.MaskedAutoencoder],
  which: Callable[[jax.Array], jax.Array | int],
  objective: objectives.Reconstruction,
  config: Config,
) -> tuple[checkpoints.TrainState, dict[str, jax.Array]]:
  """One step on one global batch.

  Args:
    state: before the step; its counter also decides masks and learning rate.
    batch: "image" [B, H, W, C] uint8, "readable" [B] bool.
    models: the network, with each mask that training takes.
    which: step -> the one of these that it takes.
    objective: what is made small.
    config: seed, normalization and accumulation.

  Returns:
    The state after the step and scalar metrics.
  """
  # For the whole global batch at once: the same masks on any devices.
  key = rng.key(config.train.seed, "mask", state.step)

  def taken(
    model: mae.MaskedAutoencoder, trained: Any, pixels: jax.Array
  ) -> tuple[Any, Any]:
    def loss_fn(trained: Any, part: tuple[jax.Array, Any]) -> Any:
      pixels, noise = part
      x = patchify.normalize(pixels, config.data.mean, config.data.std)
      params = state.params | trained
      return objective.loss(model, params, x, noise, state.step)

    noise = model.sample_noise(key, pixels.shape)
    return update.loss_and_grads(
      loss_fn, trained, (pixels, noise), config.optim.accum_steps, has_aux=True
    )

  (loss, metrics), grads = jax.lax.switch(
    which(state.step),
    [functools.partial(taken, model) for model in models],
    {role: state.params[role] for role in objective.optimizers},
    batch["image"],
  )
  moves = {
    role: update.RoleUpdate(how.tx, how.lr_fn(state.step), grads[role])
    for role, how in objective.optimizers.items()
  }
  state, values = update.update_all(state, moves, loss)
  values |= metrics
  # Of more than one part the whole may be below 0, where nothing is a spike.
  watched = values.get("loss_reconstruction", values["loss"])
  health = update.update_health(
    state.health, watched, batch["readable"], config.train.spike_factor
  )
  state = dataclasses.replace(state, health=health)
  return state, values | update.health_metrics(health)


def program(
  config: Config,
  model: mae.MaskedAutoencoder,
  lr_fn: optax.Schedule,
  total_steps: int,
) -> program_lib.TaskStep:
  """What is compiled of a run.

  Args:
    config: of the run.
    model: its network, see `build.masked_autoencoder`.
    lr_fn: step -> learning rate.
    total_steps: where training ends.

  Raises:
    ConfigError: if there is no mask that training is to take.
  """
  settings, seed = config.objective, config.train.seed
  by_ratio = factory.mask_variants(model, config)
  pick = lookup(
    MASK_SCHEDULES, settings.mask_schedule, "objective.mask_schedule"
  )

  def which(step: jax.Array) -> jax.Array | int:
    ratio, strategy = (
      pick(rng.key(seed, name, step), step, total_steps, count)
      for name, count in (
        ("ratio", len(by_ratio)),
        ("strategy", len(by_ratio[0])),
      )
    )
    return ratio * len(by_ratio[0]) + strategy

  kind = lookup(
    objectives.OBJECTIVES, config.discriminator.type, "discriminator.type"
  )
  objective = kind(config, model, lr_fn, total_steps)

  def init() -> checkpoints.TrainState:
    params = objective.init(lambda name: rng.key(seed, name))
    return checkpoints.TrainState.create(
      params=params,
      opt_state={
        role: how.tx.init(params[role])
        for role, how in objective.optimizers.items()
      },
    )

  models = list(itertools.chain(*by_ratio))
  return program_lib.TaskStep(
    init=init,
    train_step=functools.partial(
      train_step,
      models=models,
      which=which,
      objective=objective,
      config=config,
    ),
    flops_per_image=round(
      statistics.mean(
        objective.flops(each, config.data.channels) for each in models
      )
    ),
  )


def _random(key: jax.Array, step: jax.Array, total: int, count: int) -> Any:
  del step, total
  return jax.random.randint(key, (), 0, count)


def _sequential(key: jax.Array, step: jax.Array, total: int, count: int) -> Any:
  del key
  begins = [-(-number * total // count) for number in range(1, count)]
  return sum((step >= begin for begin in begins), jnp.int32(0))


# Which of several a step takes, by name: from a key of its own, its number, the
# number of all steps and that of what there is to take.
MASK_SCHEDULES: dict[str, Callable[[jax.Array, jax.Array, int, int], Any]] = {
  "random": _random,
  "sequential": _sequential,
}


class PretrainTask(base.ImageTask):
  """The task as `loop.run` drives it."""

  def __init__(self, config: Config, mesh: Mesh):
    """Builds everything that can fail for a wrong setting.

    Raises:
      ConfigError: on any setting that cannot work.
    """
    platform = mesh.devices.flat[0].platform
    self._model = factory.masked_autoencoder(config, platform)
    # For what it refuses: it may be minutes before data are open.
    program(config, self._model, lambda step: 0.0, total_steps=1)
    super().__init__(config, mesh)
    built = program(config, self._model, self.lr_fn, self.total_steps)
    self.init, self.train_step = built.init, built.train_step
    self.flops_per_image = built.flops_per_image
    self.evaluate = pretraining.Evaluation(
      config,
      mesh,
      self._model,
      self.train_source,
      self.eval_source,
      self.unreadable,
    )

  def fit(self, state: checkpoints.TrainState) -> checkpoints.TrainState:
    """See `loop.Task`: what the target learns.

    Raises:
      ConfigError: if what is not trained would stay as it was drawn.
    """
    if objectives.FROZEN[self._config.objective.trainable]:
      raise ConfigError(
        f"objective.trainable={self._config.objective.trainable!r} leaves the "
        "encoder as it starts, which here is at random: set init_from to a "
        "checkpoint of pre-training"
      )
    target = self._model.target
    if not isinstance(target, targets.Fitted):
      return state
    before = state.params[targets.FITTED]
    found = fit_target.fit(
      self._config,
      self._mesh,
      target,
      self._model.encoder.patch_size,
      self.train_batches(0),
    )
    after = jax.tree.map(
      lambda old, new: jax.device_put(new, old.sharding),
      before,
      {"target": found},
    )
    params = state.params | {targets.FITTED: after}
    return dataclasses.replace(state, params=params)

  def load(self, path: str, like: Any) -> Any:
    """The network of another pre-training run; an opponent is drawn."""
    hints = conversion.ModelOverrides.from_config(self._config)
    found = init_from.load_autoencoder(
      path,
      like,
      self._mesh,
      self._model,
      hints,
      self._config.objective,
      channels=init_from.adaptable_channels(self._config),
    )
    others = {role: like[role] for role in like if role not in found}
    drawn = jax.jit(
      lambda: {role: self.init().params[role] for role in others},
      out_shardings=jax.tree.map(lambda x: x.sharding, others),
    )()
    return found | drawn


def run(config: Config, workdir: str, stop: signals.StopSignals) -> None:
  """Pre-trains, or goes on where an earlier run in `workdir` stopped."""
  mesh = sharding.make_mesh(config.mesh)
  pretraining_task = PretrainTask(config, mesh)
  left_out = pretraining_task.evaluate.unavailable
  if left_out and jax.process_index() == 0:
    print(left_out, flush=True)
  loop.run(pretraining_task, config, mesh, workdir, stop)
