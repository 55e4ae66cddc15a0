"""Saving of checkpoints in the background, to disks that may fail."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from orbax.checkpoint import type_handlers

from mae_jax import distributed
from mae_jax.checkpoints import checksums, incomplete, multihost
from mae_jax.checkpoints.restore import CheckpointMetadata, saved_steps
from mae_jax.checkpoints.retention import Retention
from mae_jax.checkpoints.state import TrainState
from mae_jax.config import to_dict
from mae_jax.utils import console, storage
from mae_jax.utils.errors import TrainingError

ITEMS = ("params", "opt_state", "loop", "config")


# Orbax's default, 2 GB, would stay in memory until a file is full.
_FILE_SIZE = 64 << 20


@dataclasses.dataclass(frozen=True)
class _LazyArray:
  """The name and shape of an array that is read when it is written."""

  name: str
  shape: tuple[int, ...]

  @property
  def dtype(self) -> np.dtype:
    """The dtype of all parameters."""
    return np.dtype(np.float32)


class _LazyArrayHandler(type_handlers.NumpyHandler):
  """An Orbax handler that reads and writes lazy arrays one after the other."""

  def __init__(self, take: Callable[[_LazyArray], np.ndarray]):
    super().__init__()
    self._take = take

  async def serialize(
    self, values: Any, infos: Any, args: Any = None
  ) -> list[Any]:
    args = args or [ocp.SaveArgs()] * len(values)
    for lazy, info, arg in zip(values, infos, args, strict=True):
      for write in await super().serialize([self._take(lazy)], [info], [arg]):
        write.result()
    return []


class ArrayWriter:
  """A writer of converted parameters, one array at a time.

  Orbax would copy a whole tree before it writes it. Arrays that are read only
  when they are written keep memory to a few of them.
  """

  def __init__(self, read: Callable[[str], np.ndarray]):
    """Sets the function that reads an array by its path."""
    self._read = read
    self._sums: dict[str, int] = {}

  def write(
    self,
    path: epath.PathLike,
    shapes: Mapping[str, tuple[int, ...]],
    run: CheckpointMetadata,
  ) -> None:
    """Writes the items of a step. The last item makes the checkpoint readable.

    Args:
      path: the directory of the step, not a workdir.
      shapes: shapes of the arrays by path; all are float32.
      run: metadata of the run.

    Raises:
      OSError: if it cannot be written.
    """
    directory = storage.absolute(path)
    tree = traverse_util.unflatten_dict(
      {name: _LazyArray(name, x) for name, x in shapes.items()}, "/"
    )
    handler = ocp.PyTreeCheckpointHandler(
      type_handler_registry=type_handlers.create_type_handler_registry(
        (_LazyArray, _LazyArrayHandler(self._take))
      )
    )
    with ocp.Checkpointer(handler) as writer:
      writer.save(
        directory / "params",
        args=ocp.args.PyTreeSave(tree, ocdbt_target_data_file_size=_FILE_SIZE),
      )
    config = to_dict(run.config)
    loop = {
      "step": 0,
      "data": dict(run.data),
      "class_names": list(run.class_names),
      "origin": dict(run.origin),
      "checksums": {
        "params": checksums.combine(self._sums),
        "config": checksums.json_crc(config),
      },
    }
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as writer:
      for item, content in (
        ("config", config),
        ("loop", checksums.add_crc(loop)),
      ):
        writer.save(directory / item, args=ocp.args.JsonSave(content))

  def _take(self, lazy: _LazyArray) -> np.ndarray:
    array: np.ndarray = np.ascontiguousarray(self._read(lazy.name), lazy.dtype)
    assert array.shape == lazy.shape, (lazy.name, array.shape, lazy.shape)
    self._sums[lazy.name] = checksums.array_checksum(array)
    return array


class Checkpointer:
  """A writer of a run's states under `<workdir>/checkpoints`.

  A failed write gives a warning, and the next checkpoint is a new attempt. The
  second failure in a row ends the run. Earlier checkpoints stay.
  """

  def __init__(
    self, workdir: epath.PathLike, keep: Retention, run: CheckpointMetadata
  ):
    self._root = storage.absolute(workdir) / "checkpoints"
    self._keep, self._run = keep, run
    self._manager: ocp.CheckpointManager | multihost.Manager | None = None
    self._writing: int | None = None
    self._failures = 0
    self._attempts = 0

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind: type | None, *rest: object) -> None:
    if kind is None:
      self.close()
      return
    if not distributed.single_process():
      return  # closing waits for the others, which may have no error
    with contextlib.suppress(Exception):  # the first error matters more
      self.close()

  def save(self, step: int, state: TrainState, *, wait: bool = False) -> None:
    """Saves a checkpoint, unless that step has one.

    Args:
      step: the step of the state.
      state: the state to save; its buffers may be donated when this returns.
      wait: whether to return only when the checkpoint is written. A failed
        write is then tried again at once. If False, this returns when the state
        is copied off the devices.

    Raises:
      TrainingError: if two writes in a row failed.
    """
    self._finish()
    for _ in range(2 if wait else 1):
      self._begin(step, state)
      if wait:
        self._finish()
      if not self._failures:
        break

  def failed(self, step: int, error: Exception) -> None:
    """Counts a checkpoint that could not be written.

    Raises:
      TrainingError: if the previous one failed too.
    """
    self._failures += 1
    self._writing = None
    # A manager cannot be used after an error.
    if self._manager is not None:
      if distributed.single_process():  # else closing might wait for others
        with contextlib.suppress(Exception):  # it raises the same error again
          self._manager.close()
      self._manager = None
    if self._failures > 1:
      raise TrainingError(
        f"two checkpoints in a row could not be written to {self._root} "
        f"({console.first_line(error)}); {self._last_good()}. Free space or "
        "repair the disk, and run the same command again"
      ) from error
    console.warn(
      f"the checkpoint of step {step} could not be written "
      f"({console.first_line(error)}); {self._last_good()}",
      shared=True,
    )

  def close(self) -> None:
    """Waits until everything is written.

    Raises:
      TrainingError: if two writes in a row failed.
    """
    self._finish()
    if self._manager is not None:
      self._manager.close()
      self._manager = None

  def _begin(self, step: int, state: TrainState) -> None:
    self._attempts += 1
    try:
      # All processes must agree, or a failing one would leave others waiting.
      saved: list[int] = []
      # Disks and their drivers raise anything.
      if error := run_on_all(lambda: saved.extend(self._prepare())):
        raise error
      assert self._manager is not None
      if distributed.from_first(step in saved):
        return
      config = to_dict(self._run.config)
      loop = self._loop_item(step, state, checksums.json_crc(config))
      self._writing = step
      self._manager.save(
        step,
        args=ocp.args.Composite(
          params=ocp.args.StandardSave(state.params),
          opt_state=ocp.args.StandardSave(state.opt_state),
          loop=ocp.args.JsonSave(loop),
          config=ocp.args.JsonSave(config),
        ),
      )
    except jax.errors.JaxRuntimeError:  # an error of the devices, not of disks
      raise
    except Exception as error:  # disks and their drivers raise anything
      self.failed(step, error)

  def _prepare(self) -> Sequence[int]:
    """Opens the manager, and returns the steps that are saved."""
    storage.make_directories(self._root)
    if not distributed.single_process():
      storage.check_writable(self._root)
    if self._manager is None:
      self._manager = self._make_manager()
    return self._manager.all_steps()

  def _make_manager(self) -> ocp.CheckpointManager | multihost.Manager:
    if console.is_first():
      incomplete.delete(self._root)
    if not distributed.single_process():
      return multihost.Manager(self._root, self._keep, self._attempts, ITEMS)
    options = ocp.CheckpointManagerOptions(
      preservation_policy=self._keep,
      temporary_path_class=incomplete.temporary_path_class(
        self._root, self._attempts
      ),
    )
    return ocp.CheckpointManager(self._root, options=options, item_names=ITEMS)

  def _loop_item(
    self, step: int, state: TrainState, config_crc: int
  ) -> dict[str, Any]:
    # Batches and masks are functions of the step, so the step is enough.
    return checksums.add_crc(
      {
        "step": step,
        "health": {
          field.name: getattr(state.health, field.name).item()
          for field in dataclasses.fields(state.health)
        },
        "data": dict(self._run.data),
        "class_names": list(self._run.class_names),
        "origin": dict(self._run.origin),
        "checksums": {
          "params": checksums.checksum(state.params),
          "opt_state": checksums.checksum(state.opt_state),
          "config": config_crc,
        },
      }
    )

  def _finish(self) -> None:
    """Waits for a pending write, and counts its failure."""
    if self._writing is None or self._manager is None:
      return
    step, self._writing = self._writing, None
    error = run_on_all(self._manager.wait_until_finished)
    if error is None:
      self._failures = 0
    else:
      self.failed(step, error)

  def _last_good(self) -> str:
    try:
      steps = saved_steps(self._root.parent)
    except Exception:  # the disk is gone
      steps = []
    if not steps:
      return "there is no checkpoint"
    return f"the last good checkpoint is of step {max(steps)}"


def run_on_all(
  work: Callable[[], None], kinds: type[Exception] = Exception
) -> Exception | None:
  """Runs work on all processes.

  Args:
    work: the same on all processes.
    kinds: the errors to return instead of raising them.

  Returns:
    The same error on all processes; None if there is none. An error of another
    kind is raised in its process alone, which must then end the run: the other
    processes wait for it.
  """
  failure: Exception | None = None
  try:
    work()
  except kinds as error:
    failure = error
  if distributed.single_process():
    return failure
  problems = distributed.gather(console.first_line(failure) if failure else "")
  if not any(problems):
    return None
  number, problem = next((n, p) for n, p in enumerate(problems) if p)
  return OSError(problem if all(problems) else f"process {number}: {problem}")
