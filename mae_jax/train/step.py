"""What every task's train step shares: accumulation and the guarded update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

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
  """`function` of [B, ...], applied to so many parts one after the other."""
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


class RoleUpdate(NamedTuple):
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
  """`apply_updates` of one role."""
  return apply_updates(state, {role: RoleUpdate(tx, lr, grads)}, loss)


def apply_updates(
  state: checkpoints.TrainState,
  updates: Mapping[str, RoleUpdate],
  loss: jax.Array,
) -> tuple[checkpoints.TrainState, dict[str, jax.Array]]:
  """One optimizer step, skipped where loss or gradient is not finite.

  Args:
    state: before the step.
    updates: by role, of those that are trained. If one cannot move, none does.
    loss: scalar.

  Returns:
    The state after the step, whose `health` tells whether it was skipped, and
    the metrics loss, lr and grad_norm; of roles after the first, lr_<role> and
    grad_norm_<role>.
  """
  good = jnp.isfinite(loss)
  metrics, updated = {"loss": loss}, {}
  for number, (role, move) in enumerate(updates.items()):
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


def health_metrics(health: checkpoints.Health) -> dict[str, jax.Array]:
  """The counters of a step as metrics."""
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


# By itself the TPU compiler sums all gradients of a block over the devices in
# one exchange, for which the chip waits. So each kernel's has its own, and goes
# on while the products of the next one's are computed.
_OVERLAP = {
  "xla_jf_crs_combiner_threshold_in_bytes": 1_000_000,
  "xla_enable_async_all_reduce": True,
  "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
}
# There that wants more memory on the chip than it has: ViT-L does not compile.
_WITHOUT_ROOM = ("TPU v2", "TPU v3", "TPU v4")


@dataclasses.dataclass(frozen=True)
class TaskStep:
  """What a task asks of the devices.

  Attributes:
    init: makes a new state; only ever traced.
    train_step: a pure function of state and global batch: state and scalar
      metrics.
    flops_per_image: of a training step, counted on paper.
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
  """A new state, of which `role` is trained; only ever traced."""
  params = classifier.init(rng.key(seed, "init"))
  return checkpoints.TrainState.create(
    params=params, opt_state={role: tx.init(params[role])}
  )


class ShardedStep(Protocol):
  """A program, and where its state lives."""

  @property
  def init(self) -> Init:
    """See `TaskStep`."""

  @property
  def train_step(self) -> Step:
    """See `TaskStep`."""

  def state_shardings(
    self, state: checkpoints.TrainState
  ) -> checkpoints.TrainState:
    """Where each array of a state lives."""


def abstract_state(task: ShardedStep) -> checkpoints.TrainState:
  """The state as ShapeDtypeStructs, each with its sharding."""
  shapes = jax.eval_shape(task.init)
  return jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=where
    ),
    shapes,
    task.state_shardings(shapes),
  )


def jit_step(
  train_step: Step,
  mesh: Mesh,
  state: checkpoints.TrainState,
  *,
  overlap: bool = True,
) -> Any:
  """The jitted, sharded train step, which takes the state's memory over.

  Args:
    train_step: of a task.
    mesh: the devices.
    state: of arrays or ShapeDtypeStructs, placed as the step will find it.
    overlap: see `config.Mesh`.
  """
  device = mesh.devices.flat[0]
  room = device.platform == "tpu" and device.device_kind not in _WITHOUT_ROOM
  shardings = jax.tree.map(lambda x: x.sharding, state)
  return jax.jit(
    train_step,
    in_shardings=(shardings, sharding.batch_sharding(mesh)),
    out_shardings=(shardings, sharding.replicated(mesh)),
    donate_argnums=0,
    compiler_options=_OVERLAP if room and overlap else None,
  )


def check_batch(config: Config, mesh: Mesh) -> None:
  """Refuses a batch that devices and accumulation do not divide.

  Raises:
    ConfigError: naming what would.
  """
  accum, batch = config.optim.accum_steps, config.data.batch_size
  sharding.check_batch(mesh, batch, "data.batch_size")
  if accum < 1 or batch % (accum * mesh.size):
    raise ConfigError(
      f"optim.accum_steps={accum} does not divide data.batch_size={batch} into "
      f"parts that the {mesh.size} devices divide: use a divisor of "
      f"{batch // mesh.size}"
    )
