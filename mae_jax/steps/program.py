"""A task as what is compiled of it, and how that is placed on a mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import jax
import optax
from jax.sharding import Mesh

from mae_jax import checkpoints, rng, sharding
from mae_jax import config as config_lib
from mae_jax.models import classifiers

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
class Program:
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


class Placed(Protocol):
  """A program, and where its state lives."""

  @property
  def init(self) -> Init:
    """See `Program`."""

  @property
  def train_step(self) -> Step:
    """See `Program`."""

  def state_shardings(
    self, state: checkpoints.TrainState
  ) -> checkpoints.TrainState:
    """Where each array of a state lives."""


def abstract_state(task: Placed) -> checkpoints.TrainState:
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


def check_batch(config: config_lib.Config, mesh: Mesh) -> None:
  """Refuses a batch that devices and accumulation do not divide.

  Raises:
    ConfigError: naming what would.
  """
  accum, batch = config.optim.accum_steps, config.data.batch_size
  sharding.check_batch(mesh, batch, "data.batch_size")
  if accum < 1 or batch % (accum * mesh.size):
    raise config_lib.ConfigError(
      f"optim.accum_steps={accum} does not divide data.batch_size={batch} into "
      f"parts that the {mesh.size} devices divide: use a divisor of "
      f"{batch // mesh.size}"
    )
