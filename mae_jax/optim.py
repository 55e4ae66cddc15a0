"""Schedules, decay masks and the optimiser."""

from __future__ import annotations

from typing import Any

import jax
import optax

from mae_jax import config as config_lib

# One-dimensional parameters and biases are not decayed. Blocks are stacked, so
# that a bias has two axes here: the rule goes by name. Class and mask token are
# decayed, as in the reference.
NOT_DECAYED = ("bias", "scale")


def decay_mask(params: Any) -> Any:
  """True for every parameter that weight decay applies to."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key not in NOT_DECAYED, params
  )


def learning_rate(
  config: config_lib.Optim, total_steps: int, warmup_steps: int
) -> optax.Schedule:
  """Linear warm-up from 0, then half a cosine to `min_lr`, step by step.

  Args:
    config: peak `lr` and `min_lr`.
    total_steps: where the cosine ends.
    warmup_steps: where the peak is.

  Raises:
    ConfigError: if the warm-up does not end before the training does.
  """
  if total_steps < 1:
    raise config_lib.ConfigError(
      f"training lasts {total_steps} steps: lengthen train.length"
    )
  if total_steps >= 2**31:
    raise config_lib.ConfigError(
      f"training lasts {total_steps} steps, more than the {2**31 - 1} that are "
      "counted: shorten train.length"
    )
  if not 0 <= warmup_steps < total_steps:
    raise config_lib.ConfigError(
      f"optim.warmup={config.warmup!r} is {warmup_steps} steps and the whole "
      f"training {total_steps}: shorten optim.warmup or lengthen train.length"
    )
  assert config.lr is not None  # config_dict has filled it in.
  if config.min_lr > config.lr:
    raise config_lib.ConfigError(
      f"optim.min_lr={config.min_lr}, where the cosine ends, is above "
      f"optim.lr={config.lr}, where it begins"
    )
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0 if warmup_steps else config.lr,
    peak_value=config.lr,
    warmup_steps=warmup_steps,
    decay_steps=total_steps,
    end_value=config.min_lr,
  )


def adamw(config: config_lib.Optim) -> optax.GradientTransformation:
  """AdamW without its learning rate: `step = -lr * update`.

  The rate is left to the train step, so that it is a function of the step
  number alone (a skipped step does not delay the schedule) and the logged rate
  is the one used.
  """
  clip = (
    optax.identity()  # so that a run may go on with clipping, or without
    if config.grad_clip is None
    else optax.clip_by_global_norm(config.grad_clip)
  )
  return optax.chain(
    clip,
    optax.scale_by_adam(b1=config.b1, b2=config.b2),
    optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
  )
