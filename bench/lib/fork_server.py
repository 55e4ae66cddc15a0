"""Starts `mae_jax.main` or a command many times, and imports only once.

The fork server imports all modules of the programs. For each run it forks a
process, before any device or thread pool is started. A caller can read the
phase of a training run (starting, compiling, stepping, saving, evaluating),
send signals to a process, and kill it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import mmap
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

PHASES = ("starting", "compiling", "stepping", "saving", "evaluating")
ROOT = pathlib.Path(__file__).parents[2]


class Process:
  """One run of the program.

  Attributes:
    pid: process ID.
    log: path of its output, stdout and stderr.
    errors: path of stderr, if `start` was told to keep it apart.
  """

  def __init__(self, pid: int, log: pathlib.Path, phases: mmap.mmap):
    self.pid, self.log = pid, log
    self.errors = log.with_suffix(".err")
    self._phases = phases
    self._done = threading.Event()
    self._status = 0

  @property
  def phase(self) -> tuple[str, int]:
    """The current phase, and the number of phases entered so far."""
    return PHASES[self._phases[0]], int.from_bytes(self._phases[1:5], "little")

  @property
  def running(self) -> bool:
    """True until the process has ended."""
    return not self._done.is_set()

  def signal(self, number: int) -> None:
    """Sends a signal, unless the process has ended."""
    if self.running:
      with contextlib.suppress(ProcessLookupError):
        os.kill(self.pid, number)

  def limit_files(self, largest: int) -> None:
    """Limits the size of each file that the process writes, in bytes.

    The system refuses the rest of a larger write, in Python and in C++ alike,
    as on a full disk or beyond a quota.
    """
    _, hard = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (largest, hard))

  def wait(self, timeout: float = 600) -> int:
    """Waits for the end; returns the exit code, or minus the signal number.

    Raises:
      TimeoutError: if the process still runs after `timeout` seconds.
    """
    if not self._done.wait(timeout):
      raise TimeoutError(f"{self.log.read_text()[-2000:]}")
    return os.waitstatus_to_exitcode(self._status)

  def join(self, seconds: float) -> None:
    """Waits for `seconds`, or until the process has ended."""
    self._done.wait(seconds)

  def wait_for(self, phase: str, number: int = 0, timeout: float = 600) -> bool:
    """Waits for a phase, once at least `number` phases were entered.

    Returns:
      False if the process ended before.

    Raises:
      TimeoutError: after `timeout` seconds.
    """
    end = time.monotonic() + timeout
    while self.running:
      now, count = self.phase
      if now == phase and count >= number:
        return True
      if time.monotonic() > end:
        raise TimeoutError(f"{self.log.read_text()[-2000:]}")
      time.sleep(0.001)
    return False

  def _set_ended(self, status: int) -> None:
    self._status = status
    self._done.set()


class ForkServer:
  """A process that forks one process for each run, until it is closed."""

  def __init__(
    self, directory: pathlib.Path, environ: Mapping[str, str] | None = None
  ):
    """Starts the server.

    Args:
      directory: for logs and the compilation cache.
      environ: variables of all runs, added to this process's environment.
    """
    self._directory = directory
    # All runs share one compilation cache.
    cache = {
      "JAX_COMPILATION_CACHE_DIR": str(directory / "compiled"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    self._processes: dict[int, Process] = {}
    self._process = subprocess.Popen(
      [sys.executable, "-m", "bench.lib.fork_server"],
      cwd=ROOT,
      env=os.environ | {"JAX_PLATFORMS": "cpu"} | cache | dict(environ or {}),
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self._start_lock = threading.Lock()
    self._forked: list[int] = []  # process IDs that `start` has not read yet
    self._changed = threading.Condition()
    self._listener = threading.Thread(target=self._listen, daemon=True)
    self._listener.start()

  def start(
    self,
    args: Sequence[str],
    module: str = "mae_jax.main",
    *,
    environ: Mapping[str, str] | None = None,
    split: bool = False,
  ) -> Process:
    """Runs a program; threads may share the server.

    Args:
      args: command line arguments.
      module: the module whose function `main` is the program.
      environ: variables of this run.
      split: whether stderr goes to `Process.errors`, not to `Process.log`.
    """
    request = {
      "args": list(args),
      "module": module,
      "environ": dict(environ or {}),
      "split": split,
    }
    with self._start_lock:
      return self._start(request)

  def _start(self, request: dict[str, Any]) -> Process:
    number = len(list(self._directory.glob("process-*.log")))
    log = self._directory / f"process-{number}.log"
    phases = log.with_suffix(".phase")
    phases.write_bytes(bytes(5))
    log.touch()
    with phases.open("r+b") as file:
      view = mmap.mmap(file.fileno(), 5)
    request |= {"log": str(log), "phases": str(phases)}
    assert self._process.stdin is not None
    self._process.stdin.write(json.dumps(request) + "\n")
    self._process.stdin.flush()
    with self._changed:
      if not self._changed.wait_for(lambda: self._forked, timeout=120):
        raise TimeoutError("the fork server did not answer within 120 s")
      process = Process(self._forked.pop(), log, view)
      self._processes[process.pid] = process
      self._changed.notify_all()
    return process

  def close(self) -> None:
    """Kills all runs and the server."""
    for process in self._processes.values():
      process.signal(signal.SIGKILL)
    self._process.kill()
    self._process.wait()
    self._listener.join()
    for pipe in (self._process.stdin, self._process.stdout):
      assert pipe is not None
      pipe.close()

  def __enter__(self) -> ForkServer:
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()

  def _listen(self) -> None:
    assert self._process.stdout is not None
    for line in self._process.stdout:
      message = json.loads(line)
      pid = message["pid"]
      with self._changed:
        if "status" not in message:
          self._forked.append(pid)
          self._changed.notify_all()
          continue
        self._changed.wait_for(
          functools.partial(self._processes.__contains__, pid)
        )
        self._processes[pid]._set_ended(message["status"])


def _serve() -> None:
  """Forks for each line of stdin; prints the start and end of each process."""
  print_lock = threading.Lock()

  def send(**message: int) -> None:
    with print_lock:
      print(json.dumps(message), flush=True)

  running: set[int] = set()

  def wait_for_end(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    running.discard(pid)
    send(pid=pid, status=status)

  _import_programs()
  for line in sys.stdin:
    request = json.loads(line)
    pid = os.fork()
    if pid == 0:
      _run(request)
    running.add(pid)
    send(pid=pid)
    threading.Thread(target=wait_for_end, args=(pid,), daemon=True).start()
  for pid in list(running):  # the caller is gone: the runs save and stop
    os.kill(pid, signal.SIGTERM)


def _import_programs() -> None:
  """Imports what runs and commands import."""
  from mae_jax import __main__, config

  names = [command.function for command in __main__.COMMANDS.values()]
  names += config.TASKS.values()
  names += ["mae_jax.train.tasks.label_efficiency", "mae_jax.evals.standalone"]
  for name in names:
    importlib.import_module(name.partition(":")[0])


def _run(request: dict[str, Any]) -> None:
  """Runs the program in the forked process, and ends that process."""
  log = pathlib.Path(request["log"])
  out = os.open(log, os.O_WRONLY | os.O_APPEND)
  err = out
  if request["split"]:
    err = os.open(log.with_suffix(".err"), os.O_WRONLY | os.O_CREAT)
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  os.dup2(out, 1)
  os.dup2(err, 2)
  os.environ.update(request["environ"])
  module = request["module"]
  if module == "mae_jax.main":
    with open(request["phases"], "r+b") as file:
      _report_phases(mmap.mmap(file.fileno(), 5))
  code = 0
  sys.argv = [module, *request["args"]]  # a run saves its command line
  try:
    importlib.import_module(module).main(request["args"])
  except SystemExit as error:
    if isinstance(error.code, str):
      print(error.code, file=sys.stderr)
    code = 1 if isinstance(error.code, str) else error.code or 0
  except BaseException:
    traceback.print_exc()
    code = 1
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _report_phases(view: mmap.mmap) -> None:
  """Makes the program write its phase into `view`."""
  from mae_jax import checkpoints
  from mae_jax.evals import pretraining
  from mae_jax.train import loop, metrics
  from mae_jax.utils import signals

  count = 0

  def enter(phase: str) -> None:
    nonlocal count
    count += 1
    view[1:5] = count.to_bytes(4, "little")
    view[0] = PHASES.index(phase)

  def wrap(owner: type, name: str, before: str, after: str | None) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
      enter(before)
      result = original(*args, **kwargs)
      if after:
        enter(after)
      return result

    setattr(owner, name, wrapped)

  install = signals.StopSignals.install

  def installed(stop: signals.StopSignals) -> None:
    install(stop)
    view[1:5] = (1).to_bytes(4, "little")  # "starting", and signals are handled

  signals.StopSignals.install = installed  # type: ignore[method-assign, assignment]
  wrap(loop.Trainer, "train", "compiling", None)
  wrap(metrics.Meter, "tick", "stepping", None)
  # `save` returns while files are being written. The phase lasts until the
  # next step.
  wrap(checkpoints.Checkpointer, "save", "saving", None)
  wrap(pretraining.Evaluation, "__call__", "evaluating", "stepping")


if __name__ == "__main__":
  _serve()
