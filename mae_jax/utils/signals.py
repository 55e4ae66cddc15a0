"""Signals set a flag; nothing is raised in the middle of other work.

An exception that a signal handler raises can land in a callback of the garbage
collector, where Python prints and drops it. And a handler runs only between two
bytecodes of the main thread, which may be minutes apart while XLA compiles. So
the handlers here do nothing. C code writes each signal to a pipe, and a thread
that reads this pipe acts on it at once.

A training run uses `StopSignals`: it saves after the current step and exits
with code 75. Every other command uses `exit_on_signals`: it removes temporary
files and exits with 128 + the signal's number.
"""

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

from mae_jax.utils import console

# EX_TEMPFAIL of sysexits.h: nothing is wrong, try again.
EXIT_CODE = 75
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Wrappers pass on a Ctrl-C that the terminal sent to the whole process group.
_ECHO_SECONDS = 0.5

_Result = TypeVar("_Result")


class RunInterrupted(BaseException):
  """The run was asked to stop; the message says what is saved.

  Like KeyboardInterrupt it is no Exception, so that no handler of ordinary
  errors catches it.
  """


class StopSignals:
  """The signals that asked this training run to stop.

  Attributes:
    requested: whether a signal has arrived.
    together: whether other processes must stop at the same step, so that this
      one may not stop on its own while there is something to save.
  """

  def __init__(
    self,
    grace_seconds: float = 120.0,
    *,
    together: bool = False,
    on_exit: Callable[[int, str], None] = lambda code, text: None,
  ):
    """Creates the state; `install` connects it to the signals.

    Args:
      grace_seconds: the process exits this long after a signal at the latest.
      together: whether there are other processes.
      on_exit: called with exit code and reason before an immediate exit, to
        tell the other processes.
    """
    self.grace_seconds = grace_seconds
    self.requested = False
    self.together = together
    self._on_exit = on_exit
    self._timer_started = threading.Lock()
    self._unsaved_work = False
    self._waiting: list[queue.SimpleQueue] = []

  def install(self) -> None:
    """Starts to listen for signals; call it from the main thread."""
    _listen(self._on_signal)

  @contextlib.contextmanager
  def unsaved_work(self) -> Iterator[None]:
    """Marks a block with something to save: no signal ends it at once."""
    self._unsaved_work = True
    try:
      yield
    finally:
      self._unsaved_work = False

  @contextlib.contextmanager
  def interruptible(self) -> Iterator[None]:
    """Marks long work that can be repeated, such as an evaluation.

    Inside, `check` raises after a signal. With several processes no process
    may stop on its own: the work asks `stop_requested` and raises
    RunInterrupted once all processes have agreed.

    Raises:
      RunInterrupted: also if the signal came before the block.
    """
    global _current
    _current = self
    try:
      check()
      yield
    finally:
      _current = None

  def agree_to_stop(self) -> None:
    """Records that all processes stop, and starts the grace period."""
    self.requested = True
    self._start_timer()

  def _on_signal(self, number: int, first: float | None) -> None:
    if first is not None:
      late = time.monotonic() - first > _ECHO_SECONDS
      if number == signal.SIGINT and late:
        self._exit(130, "left at once; the checkpoints saved before are whole")
      return  # schedulers repeat SIGTERM
    self.requested = True
    if not self._unsaved_work:
      self._exit(EXIT_CODE, "stopped: there was nothing new to save")
    self._start_timer()
    _print(
      f"{signal.Signals(number).name}: saving after this step, for at most "
      f"{self.grace_seconds:g} s; a second Ctrl-C leaves at once"
    )
    for waiting in list(self._waiting):
      waiting.put(None)

  def _start_timer(self) -> None:
    if self._timer_started.acquire(blocking=False):  # once
      timer = threading.Timer(self.grace_seconds, self._out_of_time)
      timer.daemon = True
      timer.start()

  def _out_of_time(self) -> None:
    self._exit(
      EXIT_CODE,
      f"not saved within train.shutdown_timeout={self.grace_seconds:g}; the "
      "checkpoints saved before are whole",
    )

  def _exit(self, code: int, text: str) -> None:
    _print(text)
    self._on_exit(code, text)
    os._exit(code)

  def call(self, function: Callable[[], _Result]) -> _Result:
    """Runs `function` in a thread, which is abandoned when a signal arrives."""
    results: queue.SimpleQueue = queue.SimpleQueue()

    def work() -> None:
      try:
        results.put((function(), None))
      except BaseException as error:
        results.put((None, error))

    self._waiting.append(results)
    try:
      check()
      threading.Thread(target=work, daemon=True).start()
      found = results.get()
    finally:
      self._waiting.remove(results)
    if found is None:
      raise RunInterrupted
    result, error = found
    if error is not None:
      raise error
    return result


# The run whose long work is in progress; see `StopSignals.interruptible`.
_current: StopSignals | None = None


def check() -> None:
  """Raises RunInterrupted if this process alone is to stop long work now."""
  if _current and _current.requested and not _current.together:
    raise RunInterrupted


def stop_requested() -> bool | None:
  """Returns this process's vote on stopping long work; None without a vote."""
  return _current.requested if _current and _current.together else None


def call_interruptible(function: Callable[[], _Result]) -> _Result:
  """Runs work that cannot call `check`, such as a scikit-learn fit.

  Raises:
    RunInterrupted: as soon as a signal arrives inside `interruptible`.
  """
  if _current is None or _current.together:
    return function()
  return _current.call(function)


# Held while a command replaces its output, and from a signal to the exit.
_no_exit = threading.RLock()
_undo: dict[object, Callable[[], None]] = {}


@contextlib.contextmanager
def cleanup(undo: Callable[[], None]) -> Iterator[None]:
  """Calls `undo` after the block, or before a signal ends the process in it."""
  key = object()
  with _no_exit:
    _undo[key] = undo
  try:
    yield
  finally:
    with _no_exit:
      del _undo[key]
      undo()


def no_exit() -> contextlib.AbstractContextManager:
  """Delays the exit of `exit_on_signals` to the end of the block."""
  return _no_exit


def exit_on_signals(text: str, stop: Callable[[], None] | None = None) -> None:
  """Ends this process with 128 + the signal's number when a signal arrives.

  Args:
    text: printed before the exit.
    stop: called instead, for a server that ends in an orderly way. A second
      signal exits.
  """

  def on_signal(number: int, first: float | None) -> None:
    if stop and first is None:
      stop()
      return
    _no_exit.acquire()  # never released: no new temporary file appears
    for undo in reversed(list(_undo.values())):
      with contextlib.suppress(OSError):
        undo()
    console.final_message(text)
    exit_now(128 + number)

  _listen(on_signal)


def ignore() -> None:
  """Ignores further signals: the process is about to exit with its code."""
  for number in SIGNALS:
    signal.signal(number, signal.SIG_IGN)


def run_process(main: Callable[[], None]) -> None:
  """Runs a program; if it fails, exits without waiting for its threads.

  Those of a checkpoint that cannot be written wait for each other for minutes,
  and would keep the devices and the workdir's lock.
  """
  try:
    main()
  except SystemExit as error:
    if not error.code:
      raise
    if isinstance(error.code, int):
      exit_now(error.code)
    console.final_message(str(error.code))
    exit_now(1)


def exit_now(code: int) -> NoReturn:
  """Exits without Python's own shutdown.

  That shutdown frees what XLA's threads are using, so that they may crash.
  """
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError, AttributeError):
      stream.flush()
  os._exit(code)


def _listen(on_signal: Callable[[int, float | None], None]) -> None:
  """Calls `on_signal` in a thread, with the time of the first signal."""
  read, write = os.pipe()
  os.set_blocking(write, False)
  signal.set_wakeup_fd(write, warn_on_full_buffer=False)
  for number in SIGNALS:
    if signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup
      # Python writes to the pipe only if there is a handler.
      signal.signal(number, _do_nothing)

  def listen() -> None:
    first: float | None = None
    while True:
      number = os.read(read, 1)[0]
      if number in SIGNALS:
        on_signal(number, first)
        first = first or time.monotonic()

  threading.Thread(target=listen, daemon=True).start()


def _do_nothing(number: int, frame: Any) -> None:
  """Keeps the signal's default action from ending the process."""


def _print(text: str) -> None:
  # Not print(): the main thread may be inside one, holding its lock.
  with contextlib.suppress(OSError):  # the reader is gone
    os.write(2, f"\n{console.prefix()}{text}\n".encode())
