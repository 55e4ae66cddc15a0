"""Fine-tuning: a new state and the train step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mae_jax import checkpoints
from mae_jax.config import Config
from mae_jax.distributed import sharding
from mae_jax.models import classifiers, flops, losses, patchify, vit
from mae_jax.train import loop, mixup, optim, step
from mae_jax.train import step as program_lib
from mae_jax.train.tasks import base
from mae_jax.utils import rng, signals

ROLE = classifiers.MODEL  # what is trained


def train_step(
  state: checkpoints.TrainState,
  batch: Mapping[str, jax.Array],
  *,
  model: vit.VisionTransformer,
  tx: optax.GradientTransformation,
  lr_fn: optax.Schedule,
  config: Config,
  seed: jax.Array | int,
) -> tuple[checkpoints.TrainState, dict[str, jax.Array]]:
  """One step on one global batch.

  Args:
    state: before the step.
    batch: "image" [B, H, W, C] uint8, "label" [B] int32, "readable" [B] bool.
    model: the network.
    tx: see `optim.adamw`.
    lr_fn: step -> learning rate.
    config: of the run, but for its seed.
    seed: of all that is random, together with the step.

  Returns:
    The state after the step and scalar metrics.
  """
  settings = config.classify
  pixels, labels = batch["image"], batch["label"]

  def key(name: str) -> jax.Array:
    return rng.key(seed, name, state.step)

  # All that is random is drawn for the whole batch: micro-batches and devices
  # see their part of it.
  x = classifiers.normalize_pixels(pixels, config)
  if settings.erasing:
    x = mixup.random_erasing(key("erasing"), x, settings.erasing)
  mix = mixup.draw_mix(
    key("mix"),
    config.data.image_size,
    mixup=settings.mixup,
    cutmix=settings.cutmix,
    switch=settings.mix_switch,
    prob=settings.mix_prob,
  )
  if settings.mixup or settings.cutmix:
    x = mixup.mix_images(x, mix)
  targets = mixup.mix_labels(labels, model.num_classes, settings.smoothing, mix)
  shape = (pixels.shape[0], model.encoder.depth, 2)
  noise = jax.random.uniform(key("drop_path"), shape)

  def loss_fn(params: Any, part: tuple[jax.Array, ...]) -> jax.Array:
    x, targets, noise = part
    params = jax.tree.map(
      lambda changes, p: jnp.where(changes, p, jax.lax.stop_gradient(p)),
      vit.trainable_mask(params, settings.trainable),
      params,
    )
    logits: Any = model.apply({"params": params}, x, noise, settings.drop_path)
    return losses.soft_cross_entropy(logits, targets).mean()

  loss, grads = step.loss_and_grads(
    loss_fn,
    state.params[ROLE],
    (x, targets, noise),
    config.optim.accum_steps,
  )
  lr = lr_fn(state.step)
  skipped = state.health.skipped
  state, values = step.update(state, ROLE, tx, lr, loss, grads)
  params = state.params
  if settings.ema:
    share = jnp.where(state.health.skipped > skipped, 0.0, 1 - settings.ema)
    averaged = optax.incremental_update(
      params[ROLE], params[classifiers.AVERAGED], share
    )
    params = params | {classifiers.AVERAGED: averaged}
  health = step.update_health(
    state.health, loss, batch["readable"], config.train.spike_factor
  )
  state = dataclasses.replace(state, params=params, health=health)
  return state, values | step.health_metrics(health)


def program(
  config: Config,
  classifier: classifiers.FineTuned,
  lr_fn: optax.Schedule,
  seed: jax.Array | int,
) -> program_lib.TaskStep:
  """What is compiled of a run.

  Args:
    config: of the run, but for its seed.
    classifier: its network.
    lr_fn: step -> learning rate.
    seed: of the run; may be traced.
  """
  params = jax.eval_shape(classifier.init, rng.key(0, "init"))[ROLE]
  # What is frozen is not decayed either.
  scales = jax.tree.map(
    lambda scale, changes: np.float32(scale * changes),
    optim.layer_scales(params, config.optim.layer_decay),
    vit.trainable_mask(params, config.classify.trainable),
  )
  tx = optim.adamw(config.optim, optim.FINETUNE_NOT_DECAYED, scales)
  data, patch_size = config.data, classifier.encoder.patch_size
  return program_lib.TaskStep(
    init=functools.partial(
      program_lib.init_classifier, classifier, tx, role=ROLE, seed=seed
    ),
    train_step=functools.partial(
      train_step,
      model=classifier.model,
      tx=tx,
      lr_fn=lr_fn,
      config=config,
      seed=seed,
    ),
    flops_per_image=flops.classifier_step(
      classifier.model,
      patchify.grid_size(data.image_size, patch_size),
      data.channels,
    ),
  )


class FinetuneTask(base.ClassificationTask):
  """The task as `loop.run` drives it."""

  classifier: classifiers.FineTuned

  def seeded(self, seed: jax.Array | int) -> program_lib.TaskStep:
    """As in `task.Labeled`."""
    return program(self._config, self.classifier, self.lr_fn, seed)


def run(config: Config, workdir: str, stop: signals.StopSignals) -> None:
  """Fine-tunes, or goes on where an earlier run in `workdir` stopped."""
  mesh = sharding.make_mesh(config.mesh)
  loop.run(FinetuneTask(config, mesh), config, mesh, workdir, stop)
