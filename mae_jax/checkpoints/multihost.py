"""A checkpoint manager for several processes, in place of Orbax's own.

The threads of Orbax's manager wait for each other even if one process has
failed: minutes for one full disk. Here a process that fails publishes its
error, and the others stop waiting. A step's directory still gets its name only
when all processes have written. A failed attempt is never reused.
"""

from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from mae_jax import distributed
from mae_jax.checkpoints import incomplete
from mae_jax.checkpoints.retention import Retention
from mae_jax.utils import console, storage

_TIMEOUT_SECONDS = (
  1200  # Orbax's default, for slow disks; errors end it at once
)


class Manager:
  """The part of `ocp.CheckpointManager` that `Checkpointer` uses."""

  def __init__(
    self,
    root: epath.Path,
    keep: Retention,
    attempt: int,
    items: tuple[str, ...],
  ):
    """Opens the directory; all processes must call this.

    Args:
      root: the directory of the checkpoints.
      keep: which checkpoints stay.
      attempt: a number that no earlier manager of this run had, the same in all
        processes.
      items: names of the items of a checkpoint.
    """
    self._root, self._keep = root, keep
    self._key = f"save/{attempt}"
    self._error: Exception | None = None
    options = ocp.options.MultiprocessingOptions(
      primary_host=0,
      # If set, Orbax's barriers use the coordination service, and not a program
      # on the devices, which are busy.
      active_processes=set(range(jax.process_count())),
      barrier_sync_key_prefix=f"attempt{attempt}",
    )
    temporary = incomplete.temporary_path_class(root, attempt)
    self._writer = ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler(
        *items,
        composite_options=ocp.CompositeOptions(
          multiprocessing_options=options, temporary_path_class=temporary
        ),
      ),
      async_options=ocp.options.AsyncOptions(
        timeout_secs=_TIMEOUT_SECONDS, barrier_sync_fn=self._barrier
      ),
      multiprocessing_options=options,
      temporary_path_class=temporary,
    )

  def all_steps(self) -> list[int]:
    """Lists the steps of complete checkpoints."""
    return list(ocp.utils.checkpoint_steps(self._root))

  def save(self, step: int, args: Any) -> None:
    """Copies the state off the devices, and writes it in the background."""
    try:
      self._writer.save(self._root / str(step), args, force=True)
    except jax.errors.JaxRuntimeError:  # an error of the devices, not of disks
      raise
    except Exception as error:
      self._error = error  # `wait_until_finished` raises it in all processes

  def wait_until_finished(self) -> None:
    """Waits until the checkpoint is written.

    Raises:
      Exception: the error of this process, or of another one.
    """
    try:
      if self._error is not None:
        raise self._error
      self._writer.wait_until_finished()
    except Exception as error:
      distributed.publish(f"{self._key}/failed", console.first_line(error))
      raise

  def close(self) -> None:
    """Closes the writer, after the last checkpoint."""
    self._writer.close()

  def _barrier(self, *, key: str, timeout_ms: int) -> None:
    """Waits, in Orbax's thread, for the others or for an error of one."""
    if "async_commit_complete" in key and console.is_first():
      self._delete_old()
    distributed.barrier(
      f"{self._key}/{key}", timeout_ms / 1000, f"{self._key}/failed"
    )

  def _delete_old(self) -> None:
    try:
      with storage.os_errors(self._root):
        steps = sorted(self.all_steps())
        for step, stays in zip(steps, self._keep.stay(steps), strict=True):
          if not stays:
            (self._root / str(step)).rmtree()
    except OSError as error:
      console.warn(f"an old checkpoint could not be deleted: {error}")
