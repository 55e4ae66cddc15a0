"""Restoring of a run's newest complete checkpoint, or of parameters alone."""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

from mae_jax import distributed
from mae_jax.checkpoints import checksums
from mae_jax.checkpoints.state import Health, TrainState
from mae_jax.config import Config, fixed_changes, from_config_dict
from mae_jax.distributed import sharding
from mae_jax.utils import console, storage
from mae_jax.utils.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class CheckpointMetadata:
  """A checkpoint's description of its run.

  Attributes:
    config: the settings.
    data: identity of the training data, see `Source.identity`.
    class_names: names of the labels that it learned, in order.
    origin: source and weight format of converted weights; empty for weights
      that were trained here.
  """

  config: Config
  data: Mapping[str, int | str]
  class_names: Sequence[str] = ()
  origin: Mapping[str, str] = dataclasses.field(default_factory=dict)


def saved_steps(workdir: epath.PathLike) -> list[int]:
  """Lists the steps of complete checkpoints in ascending order."""
  root = storage.absolute(workdir) / "checkpoints"
  steps = ocp.utils.checkpoint_steps(root) if root.is_dir() else []
  return sorted(map(int, steps))


def restore_newest(
  workdir: epath.PathLike, run: CheckpointMetadata, like: TrainState
) -> TrainState | None:
  """Restores the newest complete checkpoint, and sets broken ones aside.

  Args:
    workdir: directory of the run.
    run: the run that is about to resume.
    like: a state with the shapes, dtypes and shardings to restore.

  Returns:
    The state, with its shardings; None if there is no checkpoint.

  Raises:
    ConfigError: if the checkpoint belongs to a run with other settings or data,
      or if there are checkpoints and none can be read.
  """
  root = storage.absolute(workdir) / "checkpoints"
  # Process 0 decides for all, as a network disk may show files late.
  steps = distributed.from_first(saved_steps(workdir))
  if not steps and not root.is_dir():
    return None
  broken: dict[epath.Path, str] = {}
  for step in sorted(steps, reverse=True):
    directory = root / str(step)

    def read(directory: epath.Path = directory) -> tuple[Any, TrainState]:
      with storage.os_errors(directory):
        loop = _read_loop(directory)
        _check_same(_read_run_metadata(directory, loop), run, workdir)
        return loop, _read_state(directory, loop, like)

    found, problem = _on_all_processes(read)
    if found is not None:
      # Only now, as all devices together compute the sums of large arrays.
      _, problem = _on_all_processes(functools.partial(_verify_state, *found))
    if problem:
      broken[directory] = problem
      continue
    assert found is not None
    state = found[1]
    # Only now: if no checkpoint can be read, the reader may be at fault.
    for each, reason in broken.items():
      _set_aside(each, reason, step)
    return state
  for each in sorted(root.glob("*.broken-*")):
    broken[each] = "set aside before"
  if broken:
    newest, reason = next(iter(broken.items()))
    raise ConfigError(
      f"no checkpoint in {root} can be read, for instance {newest} ({reason}): "
      "restore a copy, or start again in another --workdir"
    )
  return None


_Result = TypeVar("_Result")


def _on_all_processes(
  work: Callable[[], _Result],
) -> tuple[_Result | None, str]:
  """Returns this process's result, or why some process cannot read its files.

  Raises:
    Exception: an error that broken files do not explain.
  """
  result, problem = None, ""
  try:
    result = work()
  except _NOT_FILE_ERRORS:
    raise
  except Exception as error:  # readers raise anything for broken files
    missing = isinstance(error, _MISSING_FILE_ERRORS)
    if isinstance(error, OSError) and not missing:
      raise  # an error of the disk, perhaps a temporary one
    problem = console.first_line(error)
  problems = distributed.gather(problem)
  if not any(problems):
    return result, ""
  number, problem = next((n, p) for n, p in enumerate(problems) if p)
  if not all(problems):
    problem = f"process {number}: {problem}"
  return None, problem


_NOT_FILE_ERRORS = (ConfigError, jax.errors.JaxRuntimeError, MemoryError)
_MISSING_FILE_ERRORS = (
  FileNotFoundError,
  IsADirectoryError,
  NotADirectoryError,
)


def load_any(
  path: epath.PathLike, mesh: Mesh
) -> tuple[dict[str, Any], CheckpointMetadata]:
  """Reads the parameters of a checkpoint of any network.

  Args:
    path: a workdir, its `checkpoints`, or one step's directory.
    mesh: devices for the parameters, by the rules of `sharding`.

  Returns:
    The parameters by role, and the metadata of their run.

  Raises:
    ConfigError: if there is no checkpoint, or the files are damaged.
  """
  directory = find_step(path)
  try:
    with _reader() as reader:
      found = reader.metadata(directory / "params").item_metadata.tree
      like = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
          leaf.shape, leaf.dtype, sharding=where
        ),
        found,
        sharding.state_shardings(mesh, found),
      )
      params = reader.restore(directory / "params", like)
    _verify(params, "params", _read_loop(directory))
  except jax.errors.JaxRuntimeError:
    raise
  except Exception as error:  # readers raise anything for broken files
    raise _unreadable_error(directory, error) from error
  return params, read_metadata(directory)


def read_metadata(path: epath.PathLike) -> CheckpointMetadata:
  """Reads the metadata of the run that a checkpoint belongs to.

  Args:
    path: a workdir, its `checkpoints`, or one step's directory.

  Raises:
    ConfigError: if there is no checkpoint, or its files are damaged.
  """
  directory = find_step(path)
  try:
    return _read_run_metadata(directory, _read_loop(directory))
  except ConfigError as error:
    raise ConfigError(
      f"{directory} has settings that this version cannot use: {error}"
    ) from error
  except Exception as error:
    raise _unreadable_error(directory, error) from error


class ArrayReader:
  """A reader of a checkpoint's parameters, one array at a time.

  Attributes:
    shapes: shape of each array, by path.
  """

  def __init__(self, path: epath.PathLike):
    """Reads the shapes and the checksum.

    Raises:
      ConfigError: if there is no checkpoint, or it is damaged.
    """
    self._directory = find_step(path)
    try:
      with ocp.StandardCheckpointer() as reader:
        metadata = reader.metadata(self._directory / "params")
      if metadata.item_metadata is None:
        raise ValueError("the list of its arrays is missing or damaged")
      tree = metadata.item_metadata.tree
      self._wanted = _read_loop(self._directory)["checksums"]["params"]
    except Exception as error:  # readers raise anything for broken files
      raise _unreadable_error(self._directory, error) from error
    self.shapes = {
      name: tuple(leaf.shape) for name, leaf in checksums.flatten(tree).items()
    }
    self._sums: dict[str, int] = {}

  def read(self, name: str) -> np.ndarray:
    """Reads one array by its path.

    Raises:
      ConfigError: if it is damaged.
    """
    tree: Any = ocp.RestoreArgs(restore_type=np.ndarray)
    for key in reversed(name.split("/")):
      tree = {key: tree}
    try:
      with ocp.PyTreeCheckpointer() as reader:
        found = reader.restore(
          self._directory / "params",
          ocp.args.PyTreeRestore(
            item=jax.tree.map(lambda _: 0, tree),
            restore_args=tree,
            partial_restore=True,
          ),
        )
    except Exception as error:  # readers raise anything for broken files
      raise _unreadable_error(self._directory, error) from error
    (array,) = jax.tree.leaves(found)
    self._sums[name] = checksums.array_checksum(array)
    return np.asarray(array)

  def verify(self) -> None:
    """Checks the checksum, for which it reads all arrays not read before.

    Raises:
      ConfigError: if the checksum differs.
    """
    for name in self.shapes.keys() - self._sums.keys():
      self.read(name)
    if checksums.combine(self._sums) != self._wanted:
      error = ValueError("the checksum of its params is wrong")
      raise _unreadable_error(self._directory, error)


def _unreadable_error(directory: epath.Path, error: Exception) -> ConfigError:
  return ConfigError(
    f"the parameters in {directory} cannot be read "
    f"({console.first_line(error)}): name the directory of another step"
  )


def find_step(path: epath.PathLike) -> epath.Path:
  """Finds the newest step's directory in a workdir or `checkpoints` directory.

  The directory of one step is returned as it is.

  Raises:
    ConfigError: if there is no checkpoint.
  """
  root = storage.absolute(path)
  if (root / "params").exists():
    return root
  for parent in (root / "checkpoints", root):
    if parent.is_dir():
      steps = [each for each in parent.iterdir() if each.name.isdigit()]
      if steps:
        return max(steps, key=lambda each: int(each.name))
  raise ConfigError(
    f"there is no checkpoint in {path}: name a workdir or one of its "
    "checkpoints/<step>"
  )


def check_shapes(path: epath.PathLike, found: Any, like: Any) -> None:
  """Compares two trees of parameters by name and shape.

  Args:
    path: the checkpoint of `found`, for the message.
    found: parameters of the checkpoint.
    like: parameters of the model.

  Raises:
    ConfigError: if they differ; the message names the first five.
  """
  found, wanted = checksums.flatten(found), checksums.flatten(like)
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
    raise ConfigError(
      f"checkpoint {path} does not fit the model: {shown}{more}"
    )


def _read_loop(directory: epath.Path) -> dict[str, Any]:
  return checksums.check_crc(
    json.loads((directory / "loop" / "metadata").read_text())
  )


def _read_run_metadata(
  directory: epath.Path, loop: Mapping[str, Any]
) -> CheckpointMetadata:
  config = json.loads((directory / "config" / "metadata").read_text())
  if checksums.json_crc(config) != loop["checksums"]["config"]:
    raise ValueError("the checksum of its config is wrong")
  return CheckpointMetadata(
    from_config_dict(config, stored=True),
    loop["data"],
    tuple(loop["class_names"]),
    loop.get("origin", {}),  # absent in old checkpoints
  )


def _read_state(
  directory: epath.Path, loop: Mapping[str, Any], like: TrainState
) -> TrainState:
  read = {}
  with _reader() as reader:
    for item in ("params", "opt_state"):
      read[item] = reader.restore(directory / item, getattr(like, item))

  def place(value: float, to: Any) -> jax.Array:
    return jax.device_put(np.asarray(value, to.dtype), to.sharding)

  health = {
    name: place(_health_value(loop, name), getattr(like.health, name))
    for name in (field.name for field in dataclasses.fields(Health))
  }
  step = place(loop["step"], like.step)
  return TrainState(step=step, health=Health(**health), **read)


def _reader() -> ocp.StandardCheckpointer:
  """Makes a reader that does not wait for the other processes.

  If one process failed, the others would wait for it.
  """
  if distributed.single_process():
    return ocp.StandardCheckpointer()
  me = jax.process_index()
  return ocp.StandardCheckpointer(
    multiprocessing_options=ocp.options.MultiprocessingOptions(
      primary_host=me, active_processes={me}, barrier_sync_key_prefix=str(me)
    )
  )


def _verify_state(loop: Mapping[str, Any], state: TrainState) -> None:
  for item in ("params", "opt_state"):
    _verify(getattr(state, item), item, loop)


def _verify(tree: Any, item: str, loop: Mapping[str, Any]) -> None:
  if checksums.checksum(tree) != loop["checksums"][item]:
    raise ValueError(f"the checksum of its {item} is wrong")


def _check_same(
  before: CheckpointMetadata, now: CheckpointMetadata, workdir: epath.PathLike
) -> None:
  changed = fixed_changes(before.config, now.config)
  changed += [
    f"{name} of the training data: was {before.data.get(name)!r}, is "
    f"{now.data.get(name)!r}"
    for name in sorted(before.data.keys() | now.data.keys())
    if before.data.get(name) != now.data.get(name)
  ]
  if changed:
    start = f" (--config.init_from={workdir} starts from its parameters)"
    if before.config.task == "label_efficiency":  # it has many networks
      start = ""
    batch = before.config.data.batch_size
    if now.config.data.batch_size < batch:
      start += (
        f". If a batch of {batch} does not fit into memory, "
        "--config.optim.accum_steps computes it in parts, in any run"
      )
    raise ConfigError(
      f"--workdir={workdir} holds a run that differs: {'; '.join(changed)}. "
      "Undo the change to resume that run, or name another --workdir for a new "
      f"run{start}"
    )


def _set_aside(directory: epath.Path, reason: str, used: int) -> None:
  if not console.is_first():
    return
  # With a name that is no number, no reader takes it for a checkpoint.
  moved = directory.with_name(f"{directory.name}.broken-{time.time_ns()}")
  directory.rename(moved)
  console.warn(
    f"checkpoint {directory} cannot be read ({reason}): it was renamed to "
    f"{moved.name}, and step {used} is restored instead"
  )


def _health_value(loop: Mapping[str, Any], name: str) -> float:
  # Version 0.1 used another name for this counter.
  old = {"consecutive_skipped": "skipped_in_a_row"}.get(name, name)
  health = loop["health"]
  return health[name if name in health else old]
