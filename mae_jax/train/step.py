"""The parts that train steps share: accumulation, update, compilation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mae_jax import checkpoints
from mae_jax.config import Config
from mae_jax.distributed import sharding
from mae_jax.models import classifiers
from mae_jax.utils import rng
from mae_jax.utils.errors import ConfigError

if TYPE_CHECKING:
  from mae_jax.train.tasks.base import Task

LossFn = Callable[[Any, Any], jax.Array]


def loss_and_grads(
  loss_fn: LossFn,
  params: Any,
  batch: Any,
  accum_steps: int,
  *,
  has_aux: bool = False,
) -> tuple[Any, Any]:
  """Computes the mean loss of a batch and its gradient, in micro-batches.

  Args:
    loss_fn: maps (params, micro-batch) to a mean over its examples.
    params: parameters to differentiate by.
    batch: a tree of [B, ...]. Everything random is sampled for the whole batch,
      so that the result does not depend on accum_steps.
    accum_steps: A, the number of micro-batches, a divisor of B.
    has_aux: whether loss_fn returns (loss, tree of other means).

  Returns:
    The result of loss_fn and the gradients, equal to those of the whole batch
    up to rounding.
  """
  value_and_grad = jax.value_and_grad(loss_fn, has_aux=has_aux)
  if accum_steps == 1:
    return value_and_grad(params, batch)

  def add(total: Any, part: Any) -> tuple[Any, None]:
    part = jax.tree.map(sharding.constrain_batch, part)
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
  """Applies `function` to [B, ...] in `parts` parts, one after the other."""
  if parts == 1:
    return function(batch)

  def apply(part: jax.Array) -> jax.Array:
    return function(sharding.constrain_batch(part))

  out = jax.lax.map(apply, _split(batch, parts))
  out = jnp.moveaxis(out, 0, 1)
  return sharding.constrain_batch(out.reshape(-1, *out.shape[2:]))


def _split(x: jax.Array, parts: int) -> jax.Array:
  # Part i is rows i, i + A, ...: every device then keeps its own rows.
  x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:])
  return jnp.moveaxis(sharding.constrain_batch(x), 1, 0)


class RoleOptimizer(NamedTuple):
  """The optimizer of one role's parameters.

  Attributes:
    tx: gives the direction; the parameters change by -lr times the direction.
    relative_lr: the learning rate, as a multiple of the run's.
  """

  tx: optax.GradientTransformation
  relative_lr: float = 1.0


def update(
  state: checkpoints.TrainState,
  optimizers: Mapping[str, RoleOptimizer],
  lr: jax.Array,
  loss: jax.Array,
  grads: Mapping[str, Any],
) -> tuple[checkpoints.TrainState, dict[str, jax.Array]]:
  """Takes an optimizer step, or skips it if loss or gradient is not finite.

  Args:
    state: before the step.
    optimizers: optimizers of the trained roles.
    lr: learning rate of the run in this step.
    loss: scalar.
    grads: gradients by role; no role is updated if one is not finite.

  Returns:
    The state after the step, whose `health` counts skipped steps, and the
    metrics loss, lr and grad_norm; lr_<role> and grad_norm_<role> for roles
    after the first.
  """
  good = jnp.isfinite(loss)
  metrics, updated = {"loss": loss}, {}
  for number, (role, (tx, relative_lr)) in enumerate(optimizers.items()):
    params, opt_state = state.params[role], state.opt_state[role]
    grad_norm = optax.tree.norm(grads[role])
    direction, new_opt_state = tx.update(grads[role], opt_state, params)
    role_lr = relative_lr * lr
    # Finite gradients, a finite state and the bounds of learning rate and decay
    # (config/schema.py) give finite updates. Checking the updates too would
    # take another pass over parameters and moments, which are most of the
    # traffic of a step on a large slice.
    good &= jnp.isfinite(grad_norm)
    new_params = jax.tree.map(
      lambda p, u, lr=role_lr: p - lr * u, params, direction
    )
    updated[role] = new_params, new_opt_state
    suffix = f"_{role}" if number else ""
    metrics |= {f"lr{suffix}": role_lr, f"grad_norm{suffix}": grad_norm}

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
      consecutive_skipped=jnp.where(good, 0, health.consecutive_skipped + 1),
    ),
  )
  return state, metrics


def update_health(
  health: checkpoints.Health,
  loss: jax.Array,
  readable: jax.Array,
  spike_factor: float,
) -> checkpoints.Health:
  """Counts loss spikes and images that could not be read.

  Args:
    health: counters before the step.
    loss: loss of the step, a scalar.
    readable: [B] bool, False for images that were replaced.
    spike_factor: a loss above this many running means is a spike.
  """
  mean = health.loss_mean
  begun = jnp.where(mean == 0, loss, mean)
  spike = jnp.isfinite(loss) & (loss > spike_factor * begun)
  return dataclasses.replace(
    health,
    spikes=health.spikes + spike,
    unreadable=health.unreadable + jnp.sum(~readable, dtype=jnp.int32),
    # A mean over some fifty steps. A loss that is not finite would stay in it.
    loss_mean=jnp.where(jnp.isfinite(loss), 0.98 * begun + 0.02 * loss, mean),
  )


def health_metrics(health: checkpoints.Health) -> dict[str, jax.Array]:
  """Returns the health counters as metrics."""
  return {
    "skipped": health.skipped,
    "consecutive_skipped": health.consecutive_skipped,
    "loss_spikes": health.spikes,
    "unreadable": health.unreadable,
  }


Init: TypeAlias = Callable[[], checkpoints.TrainState]
Step: TypeAlias = Callable[
  [checkpoints.TrainState, Any],
  tuple[checkpoints.TrainState, dict[str, jax.Array]],
]


# By default the TPU compiler sums all gradients of a block over the devices in
# one all-reduce, and the chip waits for it. With these options each kernel has
# its own all-reduce, which runs while the next gradient is computed.
_OVERLAP = {
  "xla_jf_crs_combiner_threshold_in_bytes": 1_000_000,
  "xla_enable_async_all_reduce": True,
  "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
}
# These chips lack the on-chip memory that the options need: ViT-L does not
# compile.
_TOO_SMALL = ("TPU v2", "TPU v3", "TPU v4")


@dataclasses.dataclass(frozen=True)
class TaskStep:
  """The programs of a task.

  Attributes:
    init: makes a new state; only ever traced.
    train_step: maps state and global batch to the next state and scalar
      metrics; a pure function.
    flops_per_image: flops of a train step, counted on paper.
  """

  init: Init
  train_step: Step
  flops_per_image: int


def init_classifier(
  classifier: classifiers.Classifier,
  tx: optax.GradientTransformation,
  *,
  role: str,
  seed: jax.Array | int,
) -> checkpoints.TrainState:
  """Makes a new state in which `role` is trained; only ever traced."""
  params = classifier.init(rng.key(seed, "init"))
  return checkpoints.TrainState.create(
    params=params, opt_state={role: tx.init(params[role])}
  )


def abstract_state(task: Task) -> checkpoints.TrainState:
  """Returns a task's state as ShapeDtypeStructs with shardings."""
  shapes, where = jax.eval_shape(task.init), task.state_shardings
  return jax.tree.map(
    lambda leaf, to: leaf.update(sharding=to), shapes, where(shapes)
  )


def jit_step(
  train_step: Step,
  mesh: Mesh,
  state: checkpoints.TrainState,
  *,
  overlap: bool = True,
) -> Any:
  """Compiles the sharded train step, which donates the state's buffers.

  Args:
    train_step: the step of a task.
    mesh: the devices.
    state: arrays or ShapeDtypeStructs with the shardings of the state.
    overlap: the setting `mesh.overlap`.
  """
  device = mesh.devices.flat[0]
  fits = device.platform == "tpu" and device.device_kind not in _TOO_SMALL
  shardings = jax.tree.map(lambda x: x.sharding, state)
  return jax.jit(
    train_step,
    in_shardings=(shardings, sharding.batch_sharding(mesh)),
    out_shardings=(shardings, sharding.replicated(mesh)),
    donate_argnums=0,
    compiler_options=_OVERLAP if fits and overlap else None,
  )


def check_batch(config: Config, mesh: Mesh) -> None:
  """Checks that devices and micro-batches divide the batch.

  Raises:
    ConfigError: with a value that would work.
  """
  accum, batch = config.optim.accum_steps, config.data.batch_size
  sharding.check_batch(mesh, batch, "data.batch_size")
  if accum < 1 or batch % (accum * mesh.size):
    raise ConfigError(
      f"optim.accum_steps={accum} does not divide data.batch_size={batch} into "
      f"parts that the {mesh.size} devices divide: use a divisor of "
      f"{batch // mesh.size}"
    )
