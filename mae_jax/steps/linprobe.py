"""The linear probe: a new state and the train step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mae_jax import checkpoints, losses, optim
from mae_jax import config as config_lib
from mae_jax.models import batch_norm, classifiers, flops, patches
from mae_jax.steps import program as program_lib
from mae_jax.steps import update

# What is trained. The encoder is never changed, and the running statistics are
# by no optimiser.
HEAD, STATS = classifiers.HEAD, classifiers.STATS


def train_step(
  state: checkpoints.TrainState,
  batch: Mapping[str, jax.Array],
  *,
  classifier: classifiers.Probe,
  tx: optax.GradientTransformation,
  lr_fn: optax.Schedule,
  config: config_lib.Config,
) -> tuple[checkpoints.TrainState, dict[str, jax.Array]]:
  """One step on one global batch.

  Args:
    state: before the step.
    batch: "image" [B, H, W, C] uint8, "label" [B] int32, "readable" [B] bool.
    classifier: the network.
    tx: see `optim.lars`.
    lr_fn: step -> learning rate.
    config: of the run.

  Returns:
    The state after the step and scalar metrics.
  """
  extract = functools.partial(classifier.features, state.params)
  x = update.in_parts(extract, batch["image"], config.optim.accum_steps)
  stats = batch_norm.Statistics(**state.params[STATS])
  x, stats = batch_norm.normalize_batch(x, stats, config.classify.norm_group)
  targets = jax.nn.one_hot(batch["label"], classifier.num_classes)

  def loss_fn(head: Any) -> jax.Array:
    logits = classifier.linear(head, x)
    return losses.soft_cross_entropy(logits, targets).mean()

  loss, grads = jax.value_and_grad(loss_fn)(state.params[HEAD])
  skipped, lr = state.health.skipped, lr_fn(state.step)
  state, values = update.update(state, HEAD, tx, lr, loss, grads)
  kept = state.health.skipped == skipped
  statistics = {
    name: jnp.where(kept, getattr(stats, name), old)
    for name, old in state.params[STATS].items()
  }
  health = update.watch(
    state.health, loss, batch["readable"], config.train.spike_factor
  )
  state = dataclasses.replace(
    state, health=health, params=state.params | {STATS: statistics}
  )
  return state, values | update.counts(health)


def program(
  config: config_lib.Config,
  classifier: classifiers.Probe,
  lr_fn: optax.Schedule,
  seed: jax.Array | int,
) -> program_lib.Program:
  """What is compiled of a run.

  Args:
    config: of the run, but for its seed.
    classifier: its network.
    lr_fn: step -> learning rate.
    seed: of the run; may be traced. The step itself draws nothing.
  """
  tx = optim.lars(config.optim)
  data, patch_size = config.data, classifier.encoder.patch_size
  return program_lib.Program(
    init=functools.partial(
      program_lib.init_classifier, classifier, tx, role=HEAD, seed=seed
    ),
    train_step=functools.partial(
      train_step, classifier=classifier, tx=tx, lr_fn=lr_fn, config=config
    ),
    flops_per_image=flops.encoder_forward(
      classifier.encoder,
      patches.grid_size(data.image_size, patch_size),
      data.channels,
    ),
  )


def check(config: config_lib.Config) -> None:
  """Refuses settings that a probe cannot have.

  Raises:
    ConfigError: naming the setting.
  """
  _check_groups(config)
  _check_unused(config)


# Settings of fine-tuning, which count for nothing here.
_UNUSED = {
  "classify": (
    "trained",
    "ema",
    "mixup",
    "cutmix",
    "smoothing",
    "erasing",
    "drop_path",
  ),
  "optim": ("grad_clip", "layer_decay"),
}


def _check_unused(config: config_lib.Config) -> None:
  for section, names in _UNUSED.items():
    values = getattr(config, section)
    for field in dataclasses.fields(values):
      value = getattr(values, field.name)
      if field.name in names and value != field.default:
        raise config_lib.ConfigError(
          f"{section}.{field.name}={value!r} is a setting of fine-tuning, "
          f"which a linear probe does not have: leave it at {field.default!r}, "
          "or set --config.task=finetune"
        )


def _check_groups(config: config_lib.Config) -> None:
  batch, group = config.data.batch_size, config.classify.norm_group
  if batch > group and batch % group:
    raise config_lib.ConfigError(
      f"classify.norm_group={group} does not divide data.batch_size={batch}: "
      f"use a divisor of it, or at least {batch} for one group"
    )
