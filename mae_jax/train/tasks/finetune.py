"""Fine-tuning: the encoder, or its last blocks, with a head on labels."""

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
from mae_jax.models import classifiers, flops, vit
from mae_jax.train import init_from, mixup, optim
from mae_jax.train import step as step_lib
from mae_jax.train.tasks import base
from mae_jax.utils import rng

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
  class_weights: np.ndarray | None = None,
) -> tuple[checkpoints.TrainState, dict[str, jax.Array]]:
  """Takes one step on one global batch.

  Args:
    state: before the step.
    batch: "image" [B, H, W, C] uint8, "label" [B] int32, "readable" [B] bool.
    model: the network.
    tx: optimizer, from `optim.adamw`.
    lr_fn: learning rate by step.
    config: settings of the run; its seed is not used.
    seed: seed of everything random.
    class_weights: [K], the weight of each class in the loss; None for 1.

  Returns:
    The state after the step and scalar metrics.
  """
  settings = config.classify
  pixels, labels = batch["image"], batch["label"]

  def key(name: str) -> jax.Array:
    return rng.key(seed, name, state.step)

  # Everything random is sampled for the whole batch; micro-batches and devices
  # use their part.
  x = classifiers.normalize_pixels(pixels, config)
  if settings.erasing:
    x = mixup.random_erasing(key("erasing"), x, settings.erasing)
  mix = mixup.sample_mix(
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
  if class_weights is not None:
    targets *= class_weights  # a mixed target has the mixed weight
  shape = (pixels.shape[0], model.encoder.config.depth, 2)
  noise = jax.random.uniform(key("drop_path"), shape)

  def loss_fn(params: Any, part: tuple[jax.Array, ...]) -> jax.Array:
    x, targets, noise = part
    params = jax.tree.map(
      lambda changes, p: jnp.where(changes, p, jax.lax.stop_gradient(p)),
      vit.trainable_mask(params, settings.trainable),
      params,
    )
    logits: Any = model.apply({"params": params}, x, noise, settings.drop_path)
    return optax.losses.softmax_cross_entropy(logits, targets).mean()

  loss, grads = step_lib.loss_and_grads(
    loss_fn,
    state.params[ROLE],
    (x, targets, noise),
    config.optim.accum_steps,
  )
  skipped, lr = state.health.skipped, lr_fn(state.step)
  optimizers = {ROLE: step_lib.RoleOptimizer(tx)}
  state, values = step_lib.update(state, optimizers, lr, loss, {ROLE: grads})
  params = state.params
  if settings.ema:
    share = jnp.where(state.health.skipped > skipped, 0.0, 1 - settings.ema)
    averaged = optax.incremental_update(
      params[ROLE], params[classifiers.AVERAGED], share
    )
    params = params | {classifiers.AVERAGED: averaged}
  health = step_lib.update_health(
    state.health, loss, batch["readable"], config.train.spike_factor
  )
  state = dataclasses.replace(state, params=params, health=health)
  return state, values | step_lib.health_metrics(health)


class FinetuneTask(base.ClassificationTask):
  """Fine-tuning of an encoder, or of its last blocks, with a head on labels."""

  classifier: classifiers.FineTuned

  def load_network(self, path: str, like: Any) -> dict[str, Any]:
    """Loads the encoder, and the head if it was trained on these classes."""
    return init_from.load_classifier(
      path,
      like,
      self._mesh,
      self.grid,
      self.classifier.encoder,
      self._config,
      self.info.class_names,
    )

  def seeded_step(self, seed: jax.Array | int) -> step_lib.TaskStep:
    """Builds the train step; see `base.ClassificationTask`."""
    config, classifier = self._config, self.classifier
    params = jax.eval_shape(classifier.init, rng.key(0, "init"))[ROLE]
    # Frozen parameters do not decay either.
    scales = jax.tree.map(
      lambda scale, changes: np.float32(scale * changes),
      optim.layer_scales(params, config.optim.layer_decay),
      vit.trainable_mask(params, config.classify.trainable),
    )
    tx = optim.adamw(config.optim, optim.FINETUNE_NOT_DECAYED, scales)
    return step_lib.TaskStep(
      init=functools.partial(
        step_lib.init_classifier, classifier, tx, role=ROLE, seed=seed
      ),
      train_step=functools.partial(
        train_step,
        model=classifier.model,
        tx=tx,
        lr_fn=self.lr_fn,
        config=config,
        seed=seed,
        class_weights=self.class_weights,
      ),
      flops_per_image=flops.classifier_step(
        classifier.model, self.grid, config.data.channels
      ),
    )
