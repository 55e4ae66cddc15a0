"""Masked pre-training: init, train step and evaluation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mae_jax import (
  checkpoints,
  dialects,
  images,
  interrupts,
  optim,
  rng,
  sharding,
)
from mae_jax import config as config_lib
from mae_jax.evals import pretraining
from mae_jax.models import build, flops, mae, patches
from mae_jax.train import initial, loop, step, task

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
  noise = mask_noise(
    state.step,
    seed=config.train.seed,
    batch_size=pixels.shape[0],
    num_patches=grid[0] * grid[1],
  )

  def loss_fn(params: Any, part: tuple[jax.Array, jax.Array]) -> jax.Array:
    pixels, noise = part
    x = images.normalize(pixels, config.data.mean, config.data.std)
    out: Any = model.apply({"params": params}, x, noise)
    return out.loss

  loss, grads = step.loss_and_grads(
    loss_fn, state.params[ROLE], (pixels, noise), config.optim.accum_steps
  )
  lr = lr_fn(state.step)
  state, values = step.update(state, ROLE, tx, lr, loss, grads)
  health = step.watch(
    state.health, loss, batch["readable"], config.train.spike_factor
  )
  return dataclasses.replace(state, health=health), values | step.counts(health)


def mask_noise(
  step: jax.Array | int, *, seed: int, batch_size: int, num_patches: int
) -> jax.Array:
  """The draws [B, L] that decide a step's masks.

  They are drawn for the whole global batch at once: the same on any devices.
  """
  key = rng.key(seed, "mask", step)
  return jax.random.uniform(key, (batch_size, num_patches))


class Pretraining(task.Images):
  """The task as `loop.run` drives it.

  Attributes:
    flops_per_image: of a training step, for utilisation.
  """

  def __init__(self, config: config_lib.Config, mesh: Mesh):
    """Builds everything that can fail for a wrong setting.

    Raises:
      ConfigError: on any setting that cannot work.
    """
    platform = mesh.devices.flat[0].platform
    model = build.masked_autoencoder(config, platform)
    super().__init__(config, mesh)
    self.evaluate = pretraining.Evaluation(
      config,
      mesh,
      model,
      self.train_source,
      self.eval_source,
      self.unreadable,
    )
    self._model = model
    tx = optim.adamw(config.optim)
    self.flops_per_image = flops.train_step(model)
    self.init = functools.partial(
      init,
      model,
      tx,
      seed=config.train.seed,
      image_shape=(*config.data.image_size, config.data.channels),
    )
    self.train_step = functools.partial(
      train_step, model=model, tx=tx, lr_fn=self.lr_fn, config=config
    )

  def load(self, path: str, like: Any) -> Any:
    """The parameters of another pre-training run, decoder and all."""
    hints = dialects.Hints.of_config(self._config)
    return initial.load_autoencoder(path, like, self._mesh, self._model, hints)


def run(
  config: config_lib.Config, workdir: str, stop: interrupts.Interrupts
) -> None:
  """Pre-trains, or goes on where an earlier run in `workdir` stopped."""
  mesh = sharding.make_mesh(config.mesh)
  pretraining_task = Pretraining(config, mesh)
  left_out = pretraining_task.evaluate.left_out
  if left_out and jax.process_index() == 0:
    print(left_out, flush=True)
  loop.run(pretraining_task, config, mesh, workdir, stop)
