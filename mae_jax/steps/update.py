"""What every task's train step shares: accumulation and the guarded update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mae_jax import checkpoints
from mae_jax.models import partition

LossFn = Callable[[Any, Any], jax.Array]


def loss_and_grads(
  loss_fn: LossFn,
  params: Any,
  batch: Any,
  accum_steps: int,
  *,
  has_aux: bool = False,
) -> tuple[Any, Any]:
  """The mean loss of a batch and its gradient, in `accum_steps` parts.

  Args:
    loss_fn: (params, part of the batch) -> a mean over its examples.
    params: what to differentiate by.
    batch: a tree of [B, ...]; everything random is drawn for all of it, so
      that the parts see what the whole would.
    accum_steps: A, a divisor of B.
    has_aux: whether loss_fn gives (loss, tree of other means).

  Returns:
    What loss_fn gives, and gradients: equal to those of the whole batch up to
    rounding.
  """
  value_and_grad = jax.value_and_grad(loss_fn, has_aux=has_aux)
  if accum_steps == 1:
    return value_and_grad(params, batch)

  def add(total: Any, part: Any) -> tuple[Any, None]:
    part = jax.tree.map(partition.constrain_batch, part)
    return jax.tree.map(jnp.add, total, value_and_grad(params, part)), None

  parts = jax.tree.map(lambda x: _split(x, accum_steps), batch)
  first = jax.tree.map(lambda x: x[0], parts)
  shapes = jax.eval_shape(value_and_grad, params, first)
  zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  total, _ = jax.lax.scan(add, zero, parts)
  return jax.tree.map(lambda x: x / accum_steps, total)


def in_parts(
  function: Callable[[jax.Array], jax.Array], batch: jax.Array, parts: int
) -> jax.Array:
  """`function` of [B, ...], applied to so many parts one after the other."""
  if parts == 1:
    return function(batch)

  def apply(part: jax.Array) -> jax.Array:
    return function(partition.constrain_batch(part))

  out = jax.lax.map(apply, _split(batch, parts))
  out = jnp.moveaxis(out, 0, 1)
  return partition.constrain_batch(out.reshape(-1, *out.shape[2:]))


def _split(x: jax.Array, parts: int) -> jax.Array:
  # Part i is rows i, i + A, ...: every device then keeps its own rows.
  x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:])
  return jnp.moveaxis(partition.constrain_batch(x), 1, 0)


class Move(NamedTuple):
  """How parameters of a role are to be changed.

  Attributes:
    tx: gives the direction; the step is -lr times it.
    lr: learning rate of this step.
    grads: as the parameters.
  """

  tx: optax.GradientTransformation
  lr: jax.Array
  grads: Any


def update(
  state: checkpoints.TrainState,
  role: str,
  tx: optax.GradientTransformation,
  lr: jax.Array,
  loss: jax.Array,
  grads: Any,
) -> tuple[checkpoints.TrainState, dict[str, jax.Array]]:
  """`update_all` of one role."""
  return update_all(state, {role: Move(tx, lr, grads)}, loss)


def update_all(
  state: checkpoints.TrainState, moves: Mapping[str, Move], loss: jax.Array
) -> tuple[checkpoints.TrainState, dict[str, jax.Array]]:
  """One optimiser step, skipped where loss or gradient is not finite.

  Args:
    state: before the step.
    moves: by role, of those that are trained. If one cannot move, none does.
    loss: scalar.

  Returns:
    The state after the step, whose `health` tells whether it was skipped, and
    the metrics loss, lr and grad_norm; of roles after the first, lr_<role> and
    grad_norm_<role>.
  """
  good = jnp.isfinite(loss)
  metrics, updated = {"loss": loss}, {}
  for number, (role, move) in enumerate(moves.items()):
    params, opt_state = state.params[role], state.opt_state[role]
    grad_norm = optax.tree.norm(move.grads)
    updates, new_opt_state = move.tx.update(move.grads, opt_state, params)
    # A finite norm of gradients, a finite state and the bounds of rate and
    # decay (config.AT_MOST) make finite updates. To look at these as well would
    # take another pass over parameters and moments, which are most of what a
    # step reads on a large slice.
    good &= jnp.isfinite(grad_norm)
    new_params = jax.tree.map(
      lambda p, u, lr=move.lr: p - lr * u, params, updates
    )
    updated[role] = new_params, new_opt_state
    suffix = f"_{role}" if number else ""
    metrics |= {f"lr{suffix}": move.lr, f"grad_norm{suffix}": grad_norm}

  def keep(new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

  params, opt_state = dict(state.params), dict(state.opt_state)
  for role, (new_params, new_opt_state) in updated.items():
    params[role] = keep(new_params, params[role])
    opt_state[role] = keep(new_opt_state, opt_state[role])
  health = state.health
  state = dataclasses.replace(
    state,
    step=state.step + 1,
    params=params,
    opt_state=opt_state,
    health=dataclasses.replace(
      health,
      skipped=health.skipped + ~good,
      skipped_in_a_row=jnp.where(good, 0, health.skipped_in_a_row + 1),
    ),
  )
  return state, metrics


def watch(
  health: checkpoints.Health,
  loss: jax.Array,
  readable: jax.Array,
  spike_factor: float,
) -> checkpoints.Health:
  """Counts loss spikes and images that could not be read.

  Args:
    health: of the steps before.
    loss: of this one, scalar.
    readable: [B] bool, False where a substitute stands for an image.
    spike_factor: a loss above so many running means is a spike.
  """
  mean = health.loss_mean
  begun = jnp.where(mean == 0, loss, mean)
  spike = jnp.isfinite(loss) & (loss > spike_factor * begun)
  return dataclasses.replace(
    health,
    spikes=health.spikes + spike,
    unreadable=health.unreadable + jnp.sum(~readable, dtype=jnp.int32),
    # Over some fifty steps; a loss that is not finite would stay in it.
    loss_mean=jnp.where(jnp.isfinite(loss), 0.98 * begun + 0.02 * loss, mean),
  )


def counts(health: checkpoints.Health) -> dict[str, jax.Array]:
  """The counters of a step as metrics."""
  return {
    "skipped": health.skipped,
    "skipped_in_a_row": health.skipped_in_a_row,
    "loss_spikes": health.spikes,
    "unreadable": health.unreadable,
  }
