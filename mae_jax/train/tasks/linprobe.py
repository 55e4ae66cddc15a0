"""The linear probe: a new state and the train step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mae_jax import checkpoints
from mae_jax.config import Config
from mae_jax.distributed import sharding
from mae_jax.models import batch_norm, classifiers, flops, losses, patchify
from mae_jax.train import loop, optim, step
from mae_jax.train import step as program_lib
from mae_jax.train.tasks import base
from mae_jax.utils import signals
from mae_jax.utils.errors import ConfigError

# What is trained. The encoder is never changed, and the running statistics are
# by no optimizer.
HEAD, STATS = classifiers.HEAD, classifiers.STATS


def train_step(
  state: checkpoints.TrainState,
  batch: Mapping[str, jax.Array],
  *,
  classifier: classifiers.Probe,
  tx: optax.GradientTransformation,
  lr_fn: optax.Schedule,
  config: Config,
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
  x = step.in_parts(extract, batch["image"], config.optim.accum_steps)
  stats = batch_norm.Statistics(**state.params[STATS])
  x, stats = batch_norm.normalize_batch(x, stats, config.classify.norm_group)
  targets = jax.nn.one_hot(batch["label"], classifier.num_classes)

  def loss_fn(head: Any) -> jax.Array:
    logits = classifier.linear(head, x)
    return losses.soft_cross_entropy(logits, targets).mean()

  loss, grads = jax.value_and_grad(loss_fn)(state.params[HEAD])
  skipped, lr = state.health.skipped, lr_fn(state.step)
  state, values = step.update(state, HEAD, tx, lr, loss, grads)
  kept = state.health.skipped == skipped
  statistics = {
    name: jnp.where(kept, getattr(stats, name), old)
    for name, old in state.params[STATS].items()
  }
  health = step.update_health(
    state.health, loss, batch["readable"], config.train.spike_factor
  )
  state = dataclasses.replace(
    state, health=health, params=state.params | {STATS: statistics}
  )
  return state, values | step.health_metrics(health)


def program(
  config: Config,
  classifier: classifiers.Probe,
  lr_fn: optax.Schedule,
  seed: jax.Array | int,
) -> program_lib.TaskStep:
  """What is compiled of a run.

  Args:
    config: of the run, but for its seed.
    classifier: its network.
    lr_fn: step -> learning rate.
    seed: of the run; may be traced. The step itself draws nothing.
  """
  tx = optim.lars(config.optim)
  data, patch_size = config.data, classifier.encoder.patch_size
  return program_lib.TaskStep(
    init=functools.partial(
      program_lib.init_classifier, classifier, tx, role=HEAD, seed=seed
    ),
    train_step=functools.partial(
      train_step, classifier=classifier, tx=tx, lr_fn=lr_fn, config=config
    ),
    flops_per_image=flops.full_encoder(
      classifier.encoder,
      patchify.grid_size(data.image_size, patch_size),
      data.channels,
    ),
  )


def check(config: Config) -> None:
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


class LinprobeTask(base.ClassificationTask):
  """The task as `loop.run` drives it."""

  classifier: classifiers.Probe

  def __init__(self, config: Config, mesh: Mesh):
    """Builds everything that can fail for a wrong setting.

    Raises:
      ConfigError: on any setting that cannot work, or data without labels.
    """
    check(config)
    super().__init__(config, mesh)

  def seeded(self, seed: jax.Array | int) -> program_lib.TaskStep:
    """As in `task.Labeled`."""
    return program(self._config, self.classifier, self.lr_fn, seed)


def run(config: Config, workdir: str, stop: signals.StopSignals) -> None:
  """Probes, or goes on where an earlier run in `workdir` stopped."""
  mesh = sharding.make_mesh(config.mesh)
  loop.run(LinprobeTask(config, mesh), config, mesh, workdir, stop)
