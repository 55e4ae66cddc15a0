"""Linear probe: a linear layer on the features of a frozen encoder.

The protocol of the paper (He et al. 2021, table 10): cropped and flipped
images, BatchNorm without scale and shift before the layer, and LARS without
weight decay.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from mae_jax import checkpoints
from mae_jax.config import Config
from mae_jax.models import batch_norm, classifiers, flops
from mae_jax.train import optim
from mae_jax.train import step as step_lib
from mae_jax.train.tasks import base
from mae_jax.utils.errors import ConfigError

# The trained role, and the running statistics, which no optimizer changes.
HEAD, STATS = classifiers.HEAD, classifiers.STATS


def train_step(
  state: checkpoints.TrainState,
  batch: Mapping[str, jax.Array],
  *,
  classifier: classifiers.Probe,
  tx: optax.GradientTransformation,
  lr_fn: optax.Schedule,
  config: Config,
  class_weights: np.ndarray | None = None,
) -> tuple[checkpoints.TrainState, dict[str, jax.Array]]:
  """Takes one step on one global batch.

  Args:
    state: before the step.
    batch: "image" [B, H, W, C] uint8, "label" [B] int32, "readable" [B] bool.
    classifier: the network.
    tx: optimizer, from `optim.lars`.
    lr_fn: learning rate by step.
    config: settings of the run.
    class_weights: [K], the weight of each class in the loss; None for 1.

  Returns:
    The state after the step and scalar metrics.
  """
  extract = functools.partial(classifier.features, state.params)
  x = step_lib.in_parts(extract, batch["image"], config.optim.accum_steps)
  stats = batch_norm.Statistics(**state.params[STATS])
  x, stats = batch_norm.normalize_batch(x, stats, config.classify.norm_group)
  targets = jax.nn.one_hot(batch["label"], classifier.num_classes)
  if class_weights is not None:
    targets *= class_weights

  def loss_fn(head: Any) -> jax.Array:
    logits = classifier.linear(head, x)
    return optax.losses.softmax_cross_entropy(logits, targets).mean()

  loss, grads = jax.value_and_grad(loss_fn)(state.params[HEAD])
  skipped, lr = state.health.skipped, lr_fn(state.step)
  optimizers = {HEAD: step_lib.RoleOptimizer(tx)}
  state, values = step_lib.update(state, optimizers, lr, loss, {HEAD: grads})
  kept = state.health.skipped == skipped
  statistics = {
    name: jnp.where(kept, getattr(stats, name), old)
    for name, old in state.params[STATS].items()
  }
  health = step_lib.update_health(
    state.health, loss, batch["readable"], config.train.spike_factor
  )
  state = dataclasses.replace(
    state, health=health, params=state.params | {STATS: statistics}
  )
  return state, values | step_lib.health_metrics(health)


class LinprobeTask(base.ClassificationTask):
  """A linear layer on the features of a frozen encoder."""

  classifier: classifiers.Probe

  def __init__(self, config: Config, mesh: Mesh):
    """Checks the settings; see `base.Task`."""
    super().__init__(config, mesh)
    _check_groups(config)
    _check_unused(config)

  def seeded_step(self, seed: jax.Array | int) -> step_lib.TaskStep:
    """Builds the train step, which uses no random numbers."""
    config, classifier = self._config, self.classifier
    tx = optim.lars(config.optim)
    return step_lib.TaskStep(
      init=functools.partial(
        step_lib.init_classifier, classifier, tx, role=HEAD, seed=seed
      ),
      train_step=functools.partial(
        train_step,
        classifier=classifier,
        tx=tx,
        lr_fn=self.lr_fn,
        config=config,
        class_weights=self.class_weights,
      ),
      flops_per_image=flops.full_encoder(
        classifier.encoder, self.grid, config.data.channels
      ),
    )


# Settings of fine-tuning that have no effect here.
_UNUSED = {
  "classify": (
    "trainable",
    "ema",
    "mixup",
    "cutmix",
    "smoothing",
    "erasing",
    "drop_path",
  ),
  "optim": ("grad_clip", "layer_decay"),
}


def _check_unused(config: Config) -> None:
  for section, names in _UNUSED.items():
    values = getattr(config, section)
    for field in dataclasses.fields(values):
      value = getattr(values, field.name)
      if field.name in names and value != field.default:
        raise ConfigError(
          f"{section}.{field.name}={value!r} is a setting of fine-tuning, "
          f"which a linear probe does not have: leave it at {field.default!r}, "
          "or set --config.task=finetune"
        )


def _check_groups(config: Config) -> None:
  batch, group = config.data.batch_size, config.classify.norm_group
  if batch > group and batch % group:
    raise ConfigError(
      f"classify.norm_group={group} does not divide data.batch_size={batch}: "
      f"use a divisor of it, or at least {batch} for one group"
    )
