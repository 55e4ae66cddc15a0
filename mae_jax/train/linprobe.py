"""Linear probe: a linear layer on features of an encoder that stays as it is.

The protocol of the paper: cropped and flipped images, BatchNorm without scale
and shift before the layer, LARS without decay (He et al. 2021, table 10).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mae_jax import checkpoints, interrupts, losses, optim, rng, sharding
from mae_jax import config as config_lib
from mae_jax.models import batch_norm, classifiers, flops
from mae_jax.train import loop, step, task

# What is trained. The encoder is never changed, and the running statistics are
# by no optimiser.
HEAD, STATS = classifiers.HEAD, classifiers.STATS


def init(
  classifier: classifiers.Probe,
  tx: optax.GradientTransformation,
  *,
  seed: jax.Array | int,
) -> checkpoints.TrainState:
  """A new state; under `jax.eval_shape` its shapes alone."""
  params = classifier.init(rng.key(seed, "init"))
  return checkpoints.TrainState.create(
    params=params, opt_state={HEAD: tx.init(params[HEAD])}
  )


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
  health = step.watch(
    state.health, loss, batch["readable"], config.train.spike_factor
  )
  state = dataclasses.replace(
    state, health=health, params=state.params | {STATS: statistics}
  )
  return state, values | step.counts(health)


class LinearProbe(task.Labelled):
  """The task as `loop.run` drives it.

  Attributes:
    flops_per_image: of a training step, for utilisation.
  """

  classifier: classifiers.Probe

  def __init__(self, config: config_lib.Config, mesh: Mesh):
    """Builds everything that can fail for a wrong setting.

    Raises:
      ConfigError: on any setting that cannot work, or data without labels.
    """
    _check_groups(config)
    _check_unused(config)
    super().__init__(config, mesh)
    self.flops_per_image = flops.encoder_forward(
      self.classifier.encoder, self.grid, config.data.channels
    )

  def seeded(self, seed: jax.Array | int) -> tuple[task.Init, task.Step]:
    """As in `task.Labelled`; the step itself draws nothing."""
    tx = optim.lars(self._config.optim)
    return functools.partial(init, self.classifier, tx, seed=seed), (
      functools.partial(
        train_step,
        classifier=self.classifier,
        tx=tx,
        lr_fn=self.lr_fn,
        config=self._config,
      )
    )


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


def run(
  config: config_lib.Config, workdir: str, stop: interrupts.Interrupts
) -> None:
  """Probes, or goes on where an earlier run in `workdir` stopped."""
  mesh = sharding.make_mesh(config.mesh)
  loop.run(LinearProbe(config, mesh), config, mesh, workdir, stop)
