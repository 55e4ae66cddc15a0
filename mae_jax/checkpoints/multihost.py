"""What Orbax's manager does, where several processes write one checkpoint.

The manager's threads wait for each other without looking whether somebody has
failed: minutes for one full disk. Here who fails says so, and the others stop
waiting. A step's directory still gets its name only when all have written, and
an attempt that failed is never taken up again.
"""

from __future__ import annotations

from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from mae_jax import distributed
from mae_jax.utils import console, storage

_TIMEOUT_SECONDS = (
  1200  # Orbax's own, for slow disks; who fails is known at once
)


class Manager:
  """The part of `ocp.CheckpointManager` that `Checkpointer` uses."""

  def __init__(
    self, root: epath.Path, keep: int, attempt: int, items: tuple[str, ...]
  ):
    """Clears away what was half written; all processes must come to it.

    Args:
      root: where checkpoints are.
      keep: how many of them stay.
      attempt: a number no manager of this run has had, the same everywhere.
      items: names of the parts of a checkpoint.

    Raises:
      OSError: if that fails.
    """
    self._root, self._keep = root, keep
    self._where = f"save/{attempt}"
    self._error: Exception | None = None
    if console.is_first():
      with storage.os_errors(root):
        for path in root.iterdir():
          if ocp.utils.is_tmp_checkpoint(path):
            path.rmtree()
    own = ocp.options.MultiprocessingOptions(
      primary_host=0,
      # Named, they wait through the coordination service and not by a program
      # on the devices, which are busy.
      active_processes=set(range(jax.process_count())),
      barrier_sync_key_prefix=f"attempt{attempt}",
    )
    self._writer = ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler(
        *items,
        composite_options=ocp.CompositeOptions(multiprocessing_options=own),
      ),
      async_options=ocp.options.AsyncOptions(
        timeout_secs=_TIMEOUT_SECONDS, barrier_sync_fn=self._meet
      ),
      multiprocessing_options=own,
    )

  def all_steps(self) -> list[int]:
    """Of the whole checkpoints."""
    return list(ocp.utils.checkpoint_steps(self._root))

  def save(self, step: int, args: Any) -> None:
    """Copies off the devices; the rest is done in the background."""
    try:
      self._writer.save(self._root / str(step), args, force=True)
    except jax.errors.JaxRuntimeError:  # the devices', not the disk's
      raise
    except Exception as error:
      self._error = error  # told when the others are asked too

  def wait_until_finished(self) -> None:
    """Until it is written.

    Raises:
      Exception: why this process, or another, could not.
    """
    try:
      if self._error is not None:
        raise self._error
      self._writer.wait_until_finished()
    except Exception as error:
      distributed.publish(f"{self._where}/failed", console.first_line(error))
      raise

  def close(self) -> None:
    """After the last checkpoint."""
    self._writer.close()

  def _meet(self, *, key: str, timeout_ms: int) -> None:
    """Waits for the others, unless one has failed; in Orbax's thread."""
    if "async_commit_complete" in key and console.is_first():
      self._drop_old()
    distributed.barrier(
      f"{self._where}/{key}", timeout_ms / 1000, f"{self._where}/failed"
    )

  def _drop_old(self) -> None:
    try:
      with storage.os_errors(self._root):
        for step in sorted(self.all_steps())[: -self._keep]:
          (self._root / str(step)).rmtree()
    except OSError as error:
      console.warn(f"an old checkpoint could not be removed: {error}")
