"""The training state, which each step updates and a checkpoint saves."""

from typing import Any, Self

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Health:
  """Scalar counters of problems, which the train step updates.

  Attributes:
    skipped: int32, steps skipped because loss or gradient was not finite.
    consecutive_skipped: int32, skipped steps since the last good step.
    spikes: int32, steps whose loss was far above its running mean.
    unreadable: int32, unreadable images, which were replaced.
    loss_mean: float32, running mean of the loss; 0 before the first step.
  """

  skipped: jax.Array
  consecutive_skipped: jax.Array
  spikes: jax.Array
  unreadable: jax.Array
  loss_mean: jax.Array

  @classmethod
  def create(cls) -> Self:
    """Returns the counters before the first step."""
    zero, mean = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
    return cls(zero, zero, zero, zero, mean)


@flax.struct.dataclass
class TrainState:
  """Everything that training changes; it has no functions and no random keys.

  Attributes:
    step: int32 scalar, number of optimizer steps taken.
    params: parameters by role ("model"), then by module name.
    opt_state: optimizer state by role.
    health: counters of problems.
  """

  step: jax.Array
  params: dict[str, Any]
  opt_state: dict[str, Any]
  health: Health

  @classmethod
  def create(cls, params: dict[str, Any], opt_state: dict[str, Any]) -> Self:
    """Returns a state before its first step."""
    return cls(jnp.zeros((), jnp.int32), params, opt_state, Health.create())
