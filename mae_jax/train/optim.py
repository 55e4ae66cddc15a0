"""Schedules, decay masks and the optimizer."""

from collections.abc import Container, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mae_jax.config import OptimConfig
from mae_jax.utils.errors import ConfigError

# One-dimensional parameters and biases are not decayed. Blocks are stacked, so
# that a bias has two axes here: the rule goes by name. Class and mask token are
# decayed, as in the reference.
NOT_DECAYED = ("bias", "scale")
# In fine-tuning these are not decayed either.
FINETUNE_NOT_DECAYED = (*NOT_DECAYED, "cls_token", "pos_embed")

LARS_TRUST = 0.001
LARS_MOMENTUM = 0.9


def decay_mask(params: Any, skip: Container[str] = NOT_DECAYED) -> Any:
  """Returns a tree that is True where weight decay applies."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key not in skip, params
  )


def layer_scales(params: Any, decay: float) -> Any:
  """Computes the learning rate factors of layer-wise decay.

  The factor is decay^(depth + 1 - id), where id is 0 for the embeddings, i + 1
  for block i, and depth + 1 after the blocks (Clark et al. 2020, arXiv
  2003.10555; ids as in the reference).

  Args:
    params: parameters of a `vit.VisionTransformer`, or ShapeDtypeStructs.
    decay: 1 for equal rates.

  Returns:
    For each parameter a float32 array that broadcasts to it: [depth, 1, ...]
    for stacked blocks, a scalar for the others.
  """
  depth = jax.tree.leaves(params["encoder"]["stack"])[0].shape[0]
  powers = decay ** np.arange(depth + 1, -1, -1.0)  # by id

  def scale(path: Any, leaf: Any) -> np.ndarray | np.float32:
    part = [key.key for key in path]
    if part[:2] == ["encoder", "stack"]:
      blocks = powers[1:-1].reshape(-1, *[1] * (len(leaf.shape) - 1))
      return blocks.astype(np.float32)
    embeds = part[0] == "encoder" and part[1] != "norm"
    return np.float32(powers[0 if embeds else -1])

  return jax.tree_util.tree_map_with_path(scale, params)


def lars(config: OptimConfig) -> optax.GradientTransformation:
  """Builds LARS without its learning rate, in the order of the reference.

  Decay, then the trust ratio (kernels only), then momentum (You et al. 2017,
  arXiv 1708.03888). The learning rate comes last, so that the momentum does not
  depend on it; `optax.lars` applies the rate before the momentum.
  """

  def kernels(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim > 1, params)

  return optax.chain(
    optax.add_decayed_weights(config.weight_decay, mask=kernels),
    optax.masked(
      optax.scale_by_trust_ratio(trust_coefficient=LARS_TRUST), kernels
    ),
    optax.trace(LARS_MOMENTUM),
  )


def learning_rate(
  config: OptimConfig, total_steps: int, warmup_steps: int
) -> optax.Schedule:
  """Builds the schedule: linear warm-up from 0, then half a cosine to min_lr.

  Args:
    config: peak `lr` and `min_lr`.
    total_steps: the step at which the cosine ends.
    warmup_steps: the step of the peak.

  Raises:
    ConfigError: if training has no step or too many, if the warm-up does not
      end before it, or if min_lr is above the learning rate.
  """
  if total_steps < 1:
    raise ConfigError(
      f"training lasts {total_steps} steps: lengthen train.length"
    )
  if total_steps >= 2**31:
    raise ConfigError(
      f"training lasts {total_steps} steps, more than the {2**31 - 1} that "
      "can be counted: shorten train.length"
    )
  if not 0 <= warmup_steps < total_steps:
    raise ConfigError(
      f"optim.warmup={config.warmup!r} is {warmup_steps} steps and the whole "
      f"training {total_steps}: shorten optim.warmup or lengthen train.length"
    )
  assert config.lr is not None  # config_dict has filled it in.
  if config.min_lr > config.lr:
    raise ConfigError(
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


def adamw(
  config: OptimConfig,
  not_decayed: Container[str] = NOT_DECAYED,
  scales: Any = None,
  frozen: Sequence[str] = (),
) -> optax.GradientTransformation:
  """Builds AdamW without its learning rate: parameters change by -lr * update.

  The train step applies the learning rate. So the rate is a function of the
  step number alone (a skipped step does not delay the schedule), and the logged
  rate is the applied one.

  Args:
    config: moments, decay and clipping.
    not_decayed: names of parameters without weight decay.
    scales: from `layer_scales`, or None for equal rates; decay is scaled too.
    frozen: modules whose parameters do not change.
  """
  clip = (
    optax.identity()  # one tree with or without clipping, for resumed runs
    if config.grad_clip is None
    else optax.clip_by_global_norm(config.grad_clip)
  )
  scale = optax.stateless(
    lambda updates, _: jax.tree.map(jnp.multiply, updates, scales)
  )
  tx = optax.chain(
    clip,
    optax.scale_by_adam(b1=config.b1, b2=config.b2),
    optax.add_decayed_weights(
      config.weight_decay, mask=lambda params: decay_mask(params, not_decayed)
    ),
    *([] if scales is None else [scale]),
  )
  if not frozen:
    return tx
  # Frozen parameters have no moments.
  return optax.partition(
    {True: optax.set_to_zero(), False: tx},
    lambda params: {name: name in frozen for name in params},
  )
