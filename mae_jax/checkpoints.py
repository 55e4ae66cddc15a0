"""Orbax checkpoints of separate items: params, opt_state, loop and config.

Items are separate so that a fine-tune reads `params` alone. Writes are
asynchronous and atomic: a step's directory appears when it is whole.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from mae_jax import config as config_lib

ITEMS = ("params", "opt_state", "loop", "config")


@flax.struct.dataclass
class TrainState:
  """Everything that training changes; no functions, no keys.

  Attributes:
    step: int32 scalar, optimiser steps taken.
    params: by role ("model"), then as the module names them.
    opt_state: by role.
    skipped: int32 scalar, steps left out because loss or gradient was not
      finite.
    skipped_in_a_row: int32 scalar, such steps since the last good one.
  """

  step: jax.Array
  params: dict[str, Any]
  opt_state: dict[str, Any]
  skipped: jax.Array
  skipped_in_a_row: jax.Array

  @classmethod
  def create(
    cls, params: dict[str, Any], opt_state: dict[str, Any]
  ) -> TrainState:
    """A state before its first step."""
    step, skipped, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    return cls(step, params, opt_state, skipped, in_a_row)


class Checkpointer:
  """Saves and restores a run's state under `<workdir>/checkpoints`."""

  def __init__(self, workdir: epath.PathLike, keep: int):
    self._manager = ocp.CheckpointManager(
      epath.Path(workdir).resolve() / "checkpoints",
      options=ocp.CheckpointManagerOptions(max_to_keep=keep),
      item_names=ITEMS,
    )

  def latest_step(self) -> int | None:
    """The newest whole checkpoint's step, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: TrainState, config: config_lib.Config):
    """Starts to write; returns when the state has been copied off devices."""
    if step in self._manager.all_steps():
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),
        opt_state=ocp.args.StandardSave(state.opt_state),
        # Data and masks are functions of the step: nothing else is needed.
        loop=ocp.args.StandardSave(_counters(state)),
        config=ocp.args.JsonSave(config_lib.to_dict(config)),
      ),
    )

  def restore(self, step: int, like: TrainState) -> TrainState:
    """Reads a checkpoint into the shapes, types and shardings of `like`."""
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardRestore(like.params),
        opt_state=ocp.args.StandardRestore(like.opt_state),
        loop=ocp.args.StandardRestore(_counters(like)),
      ),
    )
    return TrainState(
      params=restored.params, opt_state=restored.opt_state, **restored.loop
    )

  def close(self) -> None:
    """Waits until everything is written."""
    self._manager.wait_until_finished()
    self._manager.close()


def load_params(path: epath.PathLike, like: Any) -> Any:
  """Reads only the parameters of a checkpoint.

  Args:
    path: a workdir, its `checkpoints`, or one step's directory.
    like: the tree wanted, of arrays or ShapeDtypeStructs with shardings.

  Returns:
    The tree `like` with the checkpoint's values.

  Raises:
    ConfigError: if there is no checkpoint, or any parameter is missing, left
      over, or of another shape; it names them.
  """
  directory = find_step(path) / "params"
  with ocp.StandardCheckpointer() as reader:
    found = _flat(reader.metadata(directory).item_metadata.tree)
    wanted = _flat(like)
    wrong = [
      *(f"{name} is missing" for name in wanted.keys() - found.keys()),
      *(f"{name} is left over" for name in found.keys() - wanted.keys()),
      *(
        f"{name} is {tuple(found[name].shape)}, not {tuple(leaf.shape)}"
        for name, leaf in wanted.items()
        if name in found and tuple(found[name].shape) != tuple(leaf.shape)
      ),
    ]
    if wrong:
      shown = "; ".join(sorted(wrong)[:5])
      more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
      raise config_lib.ConfigError(
        f"checkpoint {path} does not fit the model: {shown}{more}"
      )
    return reader.restore(directory, like)


def find_step(path: epath.PathLike) -> epath.Path:
  """The directory of one step's checkpoint, given it or any parent of it.

  Raises:
    ConfigError: if there is none.
  """
  root = epath.Path(path).resolve()
  if (root / "params").exists():
    return root
  for parent in (root / "checkpoints", root):
    if parent.is_dir():
      steps = [each for each in parent.iterdir() if each.name.isdigit()]
      if steps:
        return max(steps, key=lambda each: int(each.name))
  raise config_lib.ConfigError(
    f"there is no checkpoint in {path}: name a workdir or one of its "
    "checkpoints/<step>"
  )


def _counters(state: TrainState) -> dict[str, jax.Array]:
  return {
    "step": state.step,
    "skipped": state.skipped,
    "skipped_in_a_row": state.skipped_in_a_row,
  }


def _flat(tree: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }
