"""Masked pre-training: a new state and the train step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mae_jax import checkpoints, images, optim, rng
from mae_jax import config as config_lib
from mae_jax.models import flops, mae, patches
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
  params = model.init(keys, dummy)["params"]
  return checkpoints.TrainState.create(
    params={ROLE: params}, opt_state={ROLE: tx.init(params)}
  )


def train_step(
  state: checkpoints.TrainState,
  batch: Mapping[str, jax.Array],
  *,
  model: mae.MaskedAutoencoder,
  tx: optax.GradientTransformation,
  lr_fn: optax.Schedule,
  config: config_lib.Config,
) -> tuple[checkpoints.TrainState, dict[str, jax.Array]]:
  """One step on one global batch.

  Args:
    state: before the step; its counter also decides masks and learning rate.
    batch: "image" [B, H, W, C] uint8, "readable" [B] bool.
    model: the network.
    tx: see `optim.adamw`.
    lr_fn: step -> learning rate.
    config: seed, normalisation and accumulation.

  Returns:
    The state after the step and scalar metrics.
  """
  pixels = batch["image"]
  grid = patches.grid_size(pixels.shape[1:3], model.encoder.patch_size)
  # For the whole global batch at once: the same masks on any devices.
  key = rng.key(config.train.seed, "mask", state.step)
  noise = model.mask_noise(key, pixels.shape[0], grid)

  def loss_fn(params: Any, part: tuple[jax.Array, jax.Array]) -> jax.Array:
    pixels, noise = part
    x = images.normalize(pixels, config.data.mean, config.data.std)
    out: Any = model.apply({"params": params}, x, noise)
    return out.loss

  loss, grads = update.loss_and_grads(
    loss_fn, state.params[ROLE], (pixels, noise), config.optim.accum_steps
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
) -> program_lib.Program:
  """What is compiled of a run.

  Args:
    config: of the run.
    model: its network, see `build.masked_autoencoder`.
    lr_fn: step -> learning rate.
  """
  tx = optim.adamw(config.optim)
  return program_lib.Program(
    init=functools.partial(
      init,
      model,
      tx,
      seed=config.train.seed,
      image_shape=(*config.data.image_size, config.data.channels),
    ),
    train_step=functools.partial(
      train_step, model=model, tx=tx, lr_fn=lr_fn, config=config
    ),
    flops_per_image=flops.train_step(model),
  )
