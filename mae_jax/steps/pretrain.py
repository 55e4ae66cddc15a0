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

from mae_jax import checkpoints, images, optim, rng
from mae_jax import config as config_lib
from mae_jax.models import build, flops, mae
from mae_jax.steps import program as program_lib
from mae_jax.steps import update

ROLE = "model"  # the parameters' name in the state


def init(
  model: mae.MaskedAutoencoder,
  tx: optax.GradientTransformation,
  *,
  seed: int,
  image_shape: tuple[int, int, int],
) -> checkpoints.TrainState:
  """A new state; under `jax.eval_shape` its shapes alone."""
  dummy = jnp.zeros((1, *image_shape))
  keys = {"params": rng.key(seed, "init"), "mask": rng.key(seed, "mask")}
  variables = model.init(keys, dummy)
  params = variables.pop("params")
  return checkpoints.TrainState.create(
    params={ROLE: params, **variables}, opt_state={ROLE: tx.init(params)}
  )


def train_step(
  state: checkpoints.TrainState,
  batch: Mapping[str, jax.Array],
  *,
  models: Sequence[mae.MaskedAutoencoder],
  which: Callable[[jax.Array], jax.Array | int],
  tx: optax.GradientTransformation,
  lr_fn: optax.Schedule,
  config: config_lib.Config,
) -> tuple[checkpoints.TrainState, dict[str, jax.Array]]:
  """One step on one global batch.

  Args:
    state: before the step; its counter also decides masks and learning rate.
    batch: "image" [B, H, W, C] uint8, "readable" [B] bool.
    models: the network, with each mask that training takes.
    which: step -> the one of these that it takes.
    tx: see `optim.adamw`.
    lr_fn: step -> learning rate.
    config: seed, normalisation and accumulation.

  Returns:
    The state after the step and scalar metrics.
  """
  # For the whole global batch at once: the same masks on any devices.
  key = rng.key(config.train.seed, "mask", state.step)
  variables = mae.variables(state.params)

  def taken(
    model: mae.MaskedAutoencoder, params: Any, pixels: jax.Array
  ) -> tuple[jax.Array, Any]:
    def loss_fn(params: Any, part: tuple[jax.Array, Any]) -> jax.Array:
      pixels, noise = part
      x = images.normalize(pixels, config.data.mean, config.data.std)
      out: Any = model.apply(variables | {"params": params}, x, noise)
      return out.loss

    noise = model.draw(key, pixels.shape)
    return update.loss_and_grads(
      loss_fn, params, (pixels, noise), config.optim.accum_steps
    )

  loss, grads = jax.lax.switch(
    which(state.step),
    [functools.partial(taken, model) for model in models],
    state.params[ROLE],
    batch["image"],
  )
  lr = lr_fn(state.step)
  state, values = update.update(state, ROLE, tx, lr, loss, grads)
  health = update.watch(
    state.health, loss, batch["readable"], config.train.spike_factor
  )
  return dataclasses.replace(state, health=health), values | update.counts(
    health
  )


def program(
  config: config_lib.Config,
  model: mae.MaskedAutoencoder,
  lr_fn: optax.Schedule,
  total_steps: int,
) -> program_lib.Program:
  """What is compiled of a run.

  Args:
    config: of the run.
    model: its network, see `build.masked_autoencoder`.
    lr_fn: step -> learning rate.
    total_steps: where training ends.

  Raises:
    ConfigError: if there is no mask that training is to take.
  """
  objective, channels = config.objective, config.data.channels
  models = build.variants_of_mask(model, config)
  pick = config_lib.lookup(VARIES, objective.varies, "objective.varies")

  def which(step: jax.Array) -> jax.Array | int:
    ratio, strategy = (
      pick(rng.key(config.train.seed, name, step), step, total_steps, count)
      for name, count in (("ratio", len(models)), ("strategy", len(models[0])))
    )
    return ratio * len(models[0]) + strategy

  tx = optim.adamw(config.optim)
  flat = list(itertools.chain(*models))
  return program_lib.Program(
    init=functools.partial(
      init,
      model,
      tx,
      seed=config.train.seed,
      image_shape=(*config.data.image_size, channels),
    ),
    train_step=functools.partial(
      train_step, models=flat, which=which, tx=tx, lr_fn=lr_fn, config=config
    ),
    flops_per_image=round(
      statistics.mean(flops.train_step(each, channels) for each in flat)
    ),
  )


def _drawn(key: jax.Array, step: jax.Array, total: int, count: int) -> Any:
  del step, total
  return jax.random.randint(key, (), 0, count)


def _staged(key: jax.Array, step: jax.Array, total: int, count: int) -> Any:
  del key
  return jnp.minimum(step // -(-total // count), count - 1)


# Which of several a step takes, by name: from a key of its own, its number, the
# number of all steps and that of what there is to take.
VARIES: dict[str, Callable[[jax.Array, jax.Array, int, int], Any]] = {
  "drawn": _drawn,
  "staged": _staged,
}
