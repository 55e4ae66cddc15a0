"""Compiles for what the page may ask next, while nobody waits.

Each number of visible patches is a program of its own, and of a ViT-B a second
or two pass until there is one; to paint with it takes a fraction of that.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

_NEAR = 32  # patches more or fewer than the last that was asked for


class Precompiler:
  """A thread that compiles, the nearest first, until it is closed."""

  def __init__(
    self, compile_: Callable[[int], object], length: int, usual: int
  ):
    """Starts it.

    Args:
      compile_: makes the program for a number of visible patches.
      length: how many patches there are.
      usual: how many are visible as long as nothing was asked for.
    """
    self._compile = compile_
    self._left = set(range(1, length + 1))
    self._last = usual
    self._waiting = 0  # for an answer
    self._closed = False
    self._changed = threading.Condition()
    self._thread = threading.Thread(target=self._run)
    self._thread.start()

  @contextlib.contextmanager
  def serving(self, shown: int) -> Iterator[None]:
    """While someone waits for so many visible patches, nothing is begun."""
    with self._changed:
      self._last = shown
      self._left.discard(shown)
      self._waiting += 1
    try:
      yield
    finally:
      with self._changed:
        self._waiting -= 1
        self._changed.notify()

  def close(self) -> None:
    """Ends it; a compilation is waited for."""
    with self._changed:
      self._closed = True
      self._changed.notify()
    self._thread.join()

  def _next(self) -> int | None:
    if self._waiting:
      return None
    near = [n for n in self._left if abs(n - self._last) <= _NEAR]
    return min(near, key=lambda n: (abs(n - self._last), n), default=None)

  def _run(self) -> None:
    while True:
      with self._changed:
        while (shown := self._next()) is None and not self._closed:
          self._changed.wait()
        if self._closed or shown is None:
          return
        self._left.remove(shown)
      self._compile(shown)
