"""Masked pre-training: init, train step and evaluation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from mae_jax import checkpoints, images, interrupts, optim, rng, sharding
from mae_jax import config as config_lib
from mae_jax.data import pipeline, sources
from mae_jax.data.unreadable import Unreadable
from mae_jax.evals import pretraining
from mae_jax.models import build, flops, mae, patches
from mae_jax.train import loop, step

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


class Pretraining:
  """The task as `loop.run` drives it.

  Attributes:
    train_source: images to learn from.
    data_identity: what makes two openings of them the same data.
    unreadable: the images that could not be read so far.
    flops_per_image: of a training step, for utilisation.
  """

  def __init__(self, config: config_lib.Config, mesh: Mesh):
    """Builds everything that can fail for a wrong setting.

    Raises:
      ConfigError: on any setting that cannot work.
    """
    platform = mesh.devices.flat[0].platform
    self._config, self._mesh = config, mesh
    self._model = build.masked_autoencoder(config, platform)
    _check_accumulation(config, mesh)
    self.train_source = sources.open_source(config.data, "train")
    pipeline.check_readable(self.train_source, config.data)
    self.num_examples = self.train_source.num_examples
    self.data_identity = self.train_source.identity
    self.unreadable = Unreadable()
    self.evaluate = pretraining.Evaluation(
      config,
      mesh,
      self._model,
      self.train_source,
      sources.open_source(config.data, "eval"),
      self.unreadable,
    )
    self._tx = optim.adamw(config.optim)
    self.total_steps = self.steps(config.train.length, "train.length")
    lr_fn = optim.learning_rate(
      config.optim,
      self.total_steps,
      self.steps(config.optim.warmup, "optim.warmup"),
    )
    self.flops_per_image = flops.train_step(self._model)
    self.init = functools.partial(
      init,
      self._model,
      self._tx,
      seed=config.train.seed,
      image_shape=(*config.data.image_size, config.data.channels),
    )
    self.train_step = functools.partial(
      train_step,
      model=self._model,
      tx=self._tx,
      lr_fn=lr_fn,
      config=config,
    )
    # Read from when training starts. Made here, since only the pipeline knows
    # whether the settings of the data fit these images and this process.
    self.train_batches(0)

  def steps(self, duration: str, field: str) -> int:
    """A Duration of the config in steps."""
    return config_lib.Duration.parse(duration, field).steps(
      self.train_source.num_examples, self._config.data.batch_size
    )

  def interval(self, duration: str, field: str) -> int:
    """A Duration between events in steps; 0 for never."""
    return config_lib.Duration.parse(duration, field).interval(
      self.train_source.num_examples, self._config.data.batch_size
    )

  def train_batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of every batch from `start_step` on."""
    data = self._config.data
    return pipeline.train_batches(
      self.train_source,
      data,
      seed=self._config.train.seed,
      rows=sharding.local_rows(self._mesh, data.batch_size),
      start_step=start_step,
      unreadable=self.unreadable,
    )


def _check_accumulation(config: config_lib.Config, mesh: Mesh) -> None:
  accum, batch = config.optim.accum_steps, config.data.batch_size
  sharding.check_batch(mesh, batch, "data.batch_size")
  if accum < 1 or batch % (accum * mesh.size):
    raise config_lib.ConfigError(
      f"optim.accum_steps={accum} does not divide data.batch_size={batch} into "
      f"parts that the {mesh.size} devices divide: use a divisor of "
      f"{batch // mesh.size}"
    )


def run(
  config: config_lib.Config, workdir: str, stop: interrupts.Interrupts
) -> None:
  """Pre-trains, or goes on where an earlier run in `workdir` stopped."""
  mesh = sharding.make_mesh(config.mesh)
  task = Pretraining(config, mesh)
  if task.evaluate.left_out and jax.process_index() == 0:
    print(task.evaluate.left_out, flush=True)
  loop.run(task, config, mesh, workdir, stop)
