"""A run's directory, which one run at a time may write.

Where file locks work, a second run in a directory is refused. In buckets and on
network disks without locks the newer run takes over. The older one notices it
before its next checkpoint and stops. On such machines the older run is usually
left over from a preempted host.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator

from etils import epath

from mae_jax import distributed
from mae_jax.utils import storage
from mae_jax.utils.errors import ConfigError, TrainingError

_OWNER = "run.json"
_LOCK = ".lock"


@dataclasses.dataclass(frozen=True)
class Workdir:
  """A directory that belongs to this run until the run ends.

  Attributes:
    path: the directory.
    identity: of the run; None in processes that do not check it.
  """

  path: epath.Path
  identity: str | None = None

  def check(self) -> None:
    """Checks that the directory still belongs to this run, before each save.

    Raises:
      OSError: if the directory is gone or cannot be read.
      TrainingError: if another run took it over.
    """
    if self.identity is None:
      return
    try:
      with storage.os_errors(self.path):
        owner = json.loads((self.path / _OWNER).read_text())
      who = _describe(owner)
    except (ValueError, KeyError, TypeError):
      raise OSError(f"{self.path / _OWNER} was changed or damaged") from None
    if owner["run"] != self.identity:
      raise TrainingError(
        f"another run took over {self.path}: {who}. This run stops and writes "
        "nothing more there; start it with another --workdir"
      )


def is_running(path: epath.Path) -> bool:
  """Checks whether a process of this host holds the directory."""
  try:
    with storage.os_errors(path):
      owner = json.loads((path / _OWNER).read_text())
    if owner["host"] != socket.gethostname():
      return False
    os.kill(owner["pid"], 0)  # sends nothing
  except (OSError, ValueError, KeyError, TypeError):
    return False
  return True


@contextlib.contextmanager
def hold(path: epath.PathLike, *, owner: bool = True) -> Iterator[Workdir]:
  """Makes the directory, and locks it for this run while the context is open.

  Args:
    path: the directory; it need not exist.
    owner: whether this process takes the directory for the run. The other
      processes check that they see the owner's file.

  Raises:
    ConfigError: if it cannot be written, if another run uses it, or if the
      processes do not share it.
  """
  if not owner:
    held = Workdir(storage.absolute(path))
    _check_shared(held, path, distributed.gather()[0])
    yield held
    return
  path = storage.make_directory(path, "--workdir")
  if (path / "params").exists():
    raise ConfigError(
      f"--workdir={path} is a checkpoint, not the directory of a run: name "
      "another directory, and start from this checkpoint with "
      f"--config.init_from={path}"
    )
  with contextlib.ExitStack() as stack:
    try:
      if not storage.is_remote(path):
        _check_content(path)
        stack.enter_context(_lock(path))
      identity = uuid.uuid4().hex
      content = {
        "run": identity,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.datetime.now().isoformat(timespec="seconds"),
      }
      # Always of one length: TensorFlow's bucket client caches lengths for some
      # seconds, and would truncate a longer file that replaced this one.
      owner_text = json.dumps(content).ljust(storage.RECORD_BYTES)
      storage.write_atomic(path / _OWNER, owner_text.encode())
    except OSError as error:
      raise ConfigError(
        f"--workdir={path} cannot be written ({error}): name a writable "
        "directory with room for the checkpoints"
      ) from error
    held = Workdir(path, identity)
    _check_shared(held, path, distributed.gather(identity)[0])
    yield held


def _check_content(path: epath.Path) -> None:
  """Refuses what would block a run, or fail at its first checkpoint."""
  with os.scandir(path) as entries:
    found = list(entries)
  for entry in found:
    reason = ""
    if not os.path.exists(entry.path):
      reason = "is a link to nothing"
    elif not (entry.is_file() or entry.is_dir()):
      reason = "is neither a file nor a directory"
    elif entry.name == "checkpoints" and not entry.is_dir():
      reason = "is not a directory"
    if reason:
      raise ConfigError(
        f"{entry.path} {reason}: remove it, or name another --workdir"
      )


def _check_shared(held: Workdir, given: epath.PathLike, identity: str) -> None:
  """Checks that all processes see and can write the same directory."""
  if distributed.single_process():
    return
  problem = ""
  try:
    found = _read_run_id(held.path, identity)
    if found != identity:
      problem = "does not see"
    else:
      storage.check_writable(held.path)
  except OSError as error:
    problem = f"cannot write ({error.strerror or error}) to"
  for number, each in enumerate(distributed.gather(problem)):
    if each:
      raise ConfigError(
        f"process {number} {each} --workdir={given}: it must be on a disk that "
        "all hosts share, at the same path and writable, or in a bucket"
      )


def _read_run_id(path: epath.Path, identity: str) -> str | None:
  """Reads the owner's identity, with retries: network disks may lag."""
  found = None
  for _ in range(20):
    try:
      with storage.os_errors(path):
        found = json.loads((path / _OWNER).read_text())["run"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
      found = None
    if found == identity:
      break
    time.sleep(0.25)
  return found


@contextlib.contextmanager
def _lock(path: epath.Path) -> Iterator[None]:
  # The system releases the lock when the process ends, however it ends.
  with open(path / _LOCK, "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      try:
        who = _describe(json.loads((path / _OWNER).read_text()))
      except (OSError, ValueError, KeyError):
        who = "it is just starting"
      raise ConfigError(
        f"--workdir={path} is in use by another run ({who}): wait for it, stop "
        "it, or name another directory"
      ) from None
    except OSError:  # a network disk without locks: see the module docstring
      pass
    yield


def _describe(owner: dict) -> str:
  return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
