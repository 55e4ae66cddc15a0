"""Starts `mae_jax.main` many times, without importing everything each time.

A process imports what the program imports and forks for each run, before any
device or thread pool is started. A life can be watched by its phase (starting,
compiling, stepping, saving, evaluating), signalled, and killed.
"""

from __future__ import annotations

import contextlib
import functools
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
from collections.abc import Mapping, Sequence
from typing import Any

PHASES = ("starting", "compiling", "stepping", "saving", "evaluating")
ROOT = pathlib.Path(__file__).parents[2]


class Life:
  """One run of the program.

  Attributes:
    pid: of its process.
    log: path of what it printed, both streams.
  """

  def __init__(self, pid: int, log: pathlib.Path, phases: mmap.mmap):
    self.pid, self.log = pid, log
    self._phases = phases
    self._done = threading.Event()
    self._status = 0

  @property
  def phase(self) -> tuple[str, int]:
    """The phase it is in, and how many it has been in so far."""
    return PHASES[self._phases[0]], int.from_bytes(self._phases[1:5], "little")

  @property
  def running(self) -> bool:
    """Whether it has not ended."""
    return not self._done.is_set()

  def signal(self, number: int) -> None:
    """Sends a signal, unless it has ended."""
    if self.running:
      with contextlib.suppress(ProcessLookupError):
        os.kill(self.pid, number)

  def limit_files(self, largest: int) -> None:
    """No file of it can grow beyond so many bytes from now on.

    The system refuses the rest of a write, in Python and in C++ alike, as it
    does on a full disk or beyond a quota.
    """
    _, hard = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (largest, hard))

  def wait(self, timeout: float = 600) -> int:
    """Its exit code, or minus the signal that ended it.

    Raises:
      TimeoutError: if it goes on for so many seconds.
    """
    if not self._done.wait(timeout):
      raise TimeoutError(f"{self.log.read_text()[-2000:]}")
    return os.waitstatus_to_exitcode(self._status)

  def join(self, seconds: float) -> None:
    """Waits so long, or until it has ended."""
    self._done.wait(seconds)

  def wait_for(self, phase: str, number: int = 0, timeout: float = 600) -> bool:
    """Waits for a phase, not before the one of that number.

    Returns:
      False if the life ended before.
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

  def _end(self, status: int) -> None:
    self._status = status
    self._done.set()


class Nursery:
  """Gives lives, until it is closed."""

  def __init__(
    self, directory: pathlib.Path, environ: Mapping[str, str] | None = None
  ):
    """Starts the process that forks.

    Args:
      directory: where logs go, and what was compiled.
      environ: for all lives, besides this process's environment.
    """
    self._directory = directory
    # What one life has compiled the next one uses.
    cache = {
      "JAX_COMPILATION_CACHE_DIR": str(directory / "compiled"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    self._lives: dict[int, Life] = {}
    self._process = subprocess.Popen(
      [sys.executable, "-m", "bench.lib.processes"],
      cwd=ROOT,
      env=os.environ | {"JAX_PLATFORMS": "cpu"} | cache | dict(environ or {}),
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self._starting = threading.Lock()
    self._born: list[int] = []
    self._changed = threading.Condition()
    self._listener = threading.Thread(target=self._listen, daemon=True)
    self._listener.start()

  def start(self, args: Sequence[str]) -> Life:
    """Runs the program with command line arguments; any thread may ask."""
    with self._starting:
      return self._start(args)

  def _start(self, args: Sequence[str]) -> Life:
    number = len(list(self._directory.glob("life-*.log")))
    log = self._directory / f"life-{number}.log"
    phases = log.with_suffix(".phase")
    phases.write_bytes(bytes(5))
    log.touch()
    with phases.open("r+b") as file:
      view = mmap.mmap(file.fileno(), 5)
    order = {"args": list(args), "log": str(log), "phases": str(phases)}
    assert self._process.stdin is not None
    self._process.stdin.write(json.dumps(order) + "\n")
    self._process.stdin.flush()
    with self._changed:
      if not self._changed.wait_for(lambda: self._born, timeout=120):
        raise TimeoutError("the forking process does not answer")
      life = Life(self._born.pop(), log, view)
      self._lives[life.pid] = life
      self._changed.notify_all()
    return life

  def close(self) -> None:
    """Ends everything."""
    for life in self._lives.values():
      life.signal(signal.SIGKILL)
    self._process.kill()
    self._process.wait()
    self._listener.join()
    for pipe in (self._process.stdin, self._process.stdout):
      assert pipe is not None
      pipe.close()

  def __enter__(self) -> Nursery:
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()

  def _listen(self) -> None:
    assert self._process.stdout is not None
    for line in self._process.stdout:
      told = json.loads(line)
      with self._changed:
        if "status" not in told:
          self._born.append(told["pid"])
          self._changed.notify_all()
          continue
        pid = told["pid"]
        self._changed.wait_for(functools.partial(self._lives.__contains__, pid))
        self._lives[pid]._end(told["status"])


def _serve() -> None:
  """Forks for each line of standard input; tells of births and deaths."""
  tell = threading.Lock()

  def say(**told: int) -> None:
    with tell:
      print(json.dumps(told), flush=True)

  alive: set[int] = set()

  def bury(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    alive.discard(pid)
    say(pid=pid, status=status)

  for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if pid == 0:
      _live(order)
    alive.add(pid)
    say(pid=pid)
    threading.Thread(target=bury, args=(pid,), daemon=True).start()
  for pid in list(alive):  # whoever asked for them is gone: they save and leave
    os.kill(pid, signal.SIGTERM)


def _live(order: dict[str, Any]) -> None:
  out = os.open(order["log"], os.O_WRONLY | os.O_APPEND)
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  os.dup2(out, 1)
  os.dup2(out, 2)
  with open(order["phases"], "r+b") as file:
    _report_phases(mmap.mmap(file.fileno(), 5))
  from mae_jax import main

  code = 1
  sys.argv = ["main", *order["args"]]  # where config flags look too
  try:
    main.main(order["args"])
  except SystemExit as error:
    code = error.code if isinstance(error.code, int) else 1
    if isinstance(error.code, str):
      print(error.code, file=sys.stderr)
    code = 0 if error.code is None else code
  except BaseException:
    import traceback

    traceback.print_exc()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _report_phases(view: mmap.mmap) -> None:
  """Has the program tell which phase it is in."""
  from mae_jax import checkpoints
  from mae_jax.evals import pretraining
  from mae_jax.train import loop, metrics

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

  wrap(loop.Trainer, "train", "compiling", None)
  wrap(metrics.Meter, "tick", "stepping", None)
  # It returns while files are written: the phase lasts until the next step.
  wrap(checkpoints.Checkpointer, "save", "saving", None)
  wrap(pretraining.Evaluation, "__call__", "evaluating", "stepping")


if __name__ == "__main__":
  _serve()
