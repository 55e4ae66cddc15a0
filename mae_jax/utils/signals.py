"""SIGTERM and Ctrl-C: save, leave in bounded time, and say so to a scheduler.

A signal is kept until the loop asks for it, unless nothing would be lost: then
the process ends at once. Python runs signal handlers between two bytecodes of
the main thread, which may be minutes when XLA compiles, so that a thread of its
own hears of each signal through a pipe that C code writes to.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from mae_jax.utils import console

# EX_TEMPFAIL of sysexits.h: nothing is wrong, try again.
EXIT_CODE = 75
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Wrappers pass on a Ctrl-C that the whole group had already.
_ECHO_SECONDS = 0.5


class RunInterrupted(BaseException):
  """The run was asked to end; the message says what is saved.

  Like KeyboardInterrupt it passes by what catches any other exception.
  """


class StopSignals:
  """What was asked of this process by signals.

  Attributes:
    requested: whether a signal has come.
    together: whether other processes must stop at the same point, so that none
      may stop by itself while there is something to save.
  """

  def __init__(
    self,
    grace_seconds: float = 120.0,
    *,
    together: bool = False,
    on_leave: Callable[[int, str], None] = lambda code, text: None,
  ):
    """Asks for nothing yet.

    Args:
      grace_seconds: how long the process may live on after a signal.
      together: whether there are other processes.
      on_leave: tells them when this one ends at once: its exit code, and why.
    """
    self.grace_seconds = grace_seconds
    self.requested = False
    self.together = together
    self._on_leave = on_leave
    self._clock = threading.Lock()
    self._at_stake = False
    self._interruptible = False

  def install(self) -> None:
    """From now on signals come here; only for a main thread."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in SIGNALS:
      if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup asks
        signal.signal(number, self._on_signal)
    threading.Thread(target=self._listen, args=(read,), daemon=True).start()

  @contextlib.contextmanager
  def at_stake(self) -> Iterator[None]:
    """Inside, there is something to save: the process does not end at once."""
    self._at_stake = True
    try:
      yield
    finally:
      self._at_stake = False

  @contextlib.contextmanager
  def interruptible(self) -> Iterator[None]:
    """Inside, a signal raises Stopped: for long work that can be repeated.

    Of several processes none may stop by itself: the work asks `asked` and
    raises when all have agreed.

    Raises:
      Stopped: also if the signal came before.
    """
    global _interrupting
    if self.together:
      _interrupting = self
      try:
        yield
      finally:
        _interrupting = None
      return
    self._interruptible = True
    try:
      if self.requested:
        raise RunInterrupted
      yield
    finally:
      self._interruptible = False

  def agreed(self) -> None:
    """The processes stop, this one too: its time runs from now on."""
    self.requested = True
    self._start_clock()

  def _on_signal(self, number: int, frame: object) -> None:
    self.requested = True
    if self._interruptible:
      self._interruptible = False  # no second one while the first unwinds
      raise RunInterrupted

  def _listen(self, pipe: int) -> None:
    first: float | None = None
    while True:
      number = os.read(pipe, 1)[0]
      if number not in SIGNALS:
        continue
      if first is not None:
        late = time.monotonic() - first > _ECHO_SECONDS
        if number == signal.SIGINT and late:
          self._leave(
            130, "left at once; the checkpoints saved before are whole"
          )
        continue  # schedulers repeat SIGTERM
      first = time.monotonic()
      if not self._at_stake:
        self._leave(EXIT_CODE, "stopped: there was nothing new to save")
      self._start_clock()
      _tell(
        f"{signal.Signals(number).name}: saving after this step, for at most "
        f"{self.grace_seconds:g} s; a second Ctrl-C leaves at once"
      )

  def _start_clock(self) -> None:
    if self._clock.acquire(blocking=False):  # once
      timer = threading.Timer(self.grace_seconds, self._out_of_time)
      timer.daemon = True
      timer.start()

  def _out_of_time(self) -> None:
    self._leave(
      EXIT_CODE,
      f"not saved within train.shutdown_timeout={self.grace_seconds:g}; the "
      "checkpoints saved before are whole",
    )

  def _leave(self, code: int, text: str) -> None:
    _tell(text)
    self._on_leave(code, text)
    os._exit(code)


_interrupting: StopSignals | None = None


def asked() -> bool | None:
  """Whether long work is to stop; None where it must not ask the others."""
  return None if _interrupting is None else _interrupting.requested


def _tell(text: str) -> None:
  # Not print: the main thread may be inside one, holding its lock.
  with contextlib.suppress(OSError):  # nobody is there
    os.write(2, f"\n{console.prefix()}{text}\n".encode())


def raise_at_once() -> None:
  """From now on Ctrl-C raises KeyboardInterrupt, and SIGTERM SystemExit.

  For programs that have nothing to save. Neither is lost: what is raised while
  the garbage collector or a weak reference calls back, as they do in JAX, is
  only printed by Python; here it is raised again a moment later.
  """
  if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see `mae_jax`
    signal.signal(signal.SIGINT, signal.default_int_handler)
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  told = sys.unraisablehook

  def again(lost: Any) -> None:
    error = lost.exc_value
    if not isinstance(error, (KeyboardInterrupt, SystemExit)):
      told(lost)
      return

    def raise_it(*_: Any) -> None:
      raise error

    signal.signal(signal.SIGALRM, raise_it)
    signal.setitimer(signal.ITIMER_REAL, 0.05)

  sys.unraisablehook = again


def leave(code: int) -> NoReturn:
  """Ends a stopped program, whatever XLA's threads are in the middle of.

  Python's own end takes away what they use, and they may crash.
  """
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError, AttributeError):
      stream.flush()
  os._exit(code)
