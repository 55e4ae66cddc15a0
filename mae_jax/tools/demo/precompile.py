"""Compiles programs that the page may need next, while it is idle.

Each number of visible patches needs its own program. Compiling one takes a
second or two for a ViT-B; running it takes a fraction of that.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator

_NEAR = 32  # patches more or fewer than in the last request


class Precompiler:
  """A thread that compiles for numbers near the last request first."""

  def __init__(
    self, compile_: Callable[[int], object], length: int, usual: int
  ):
    """Starts the thread.

    Args:
      compile_: compiles the program for a number of visible patches.
      length: number of patches of an image.
      usual: number of visible patches before the first request.
    """
    self._compile = compile_
    self._left = set(range(1, length + 1))
    self._last = usual
    self._waiting = 0  # requests
    self._closed = False
    self._changed = threading.Condition()
    self._thread = threading.Thread(target=self._run)
    self._thread.start()

  @contextlib.contextmanager
  def serving(self, num_visible: int) -> Iterator[None]:
    """Starts no compilation while a request with `num_visible` patches runs."""
    with self._changed:
      self._last = num_visible
      self._left.discard(num_visible)
      self._waiting += 1
    try:
      yield
    finally:
      with self._changed:
        self._waiting -= 1
        self._changed.notify()

  def close(self) -> None:
    """Stops the thread, after a compilation that runs."""
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
        while (number := self._next()) is None and not self._closed:
          self._changed.wait()
        if self._closed or number is None:
          return
        self._left.remove(number)
      self._compile(number)
