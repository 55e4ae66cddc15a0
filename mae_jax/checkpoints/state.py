"""What a run carries from step to step."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Health:
  """What went wrong so far: scalars that the step counts.

  Attributes:
    skipped: int32, steps left out because loss or gradient was not finite.
    consecutive_skipped: int32, such steps since the last good one.
    spikes: int32, steps whose loss was far above its running mean.
    unreadable: int32, images replaced by a substitute.
    loss_mean: float32, the running mean of the loss; 0 before the first step.
  """

  skipped: jax.Array
  consecutive_skipped: jax.Array
  spikes: jax.Array
  unreadable: jax.Array
  loss_mean: jax.Array

  @classmethod
  def create(cls) -> Health:
    """Before the first step."""
    none, mean = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
    return cls(none, none, none, none, mean)


@flax.struct.dataclass
class TrainState:
  """Everything that training changes; no functions, no keys.

  Attributes:
    step: int32 scalar, optimizer steps taken.
    params: by role ("model"), then as the module names them.
    opt_state: by role.
    health: counters of what went wrong.
  """

  step: jax.Array
  params: dict[str, Any]
  opt_state: dict[str, Any]
  health: Health

  @classmethod
  def create(
    cls, params: dict[str, Any], opt_state: dict[str, Any]
  ) -> TrainState:
    """A state before its first step."""
    return cls(jnp.zeros((), jnp.int32), params, opt_state, Health.create())
