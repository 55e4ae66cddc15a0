"""Groups single examples into batches, which one thread runs on the device.

Batches are padded to a few sizes, so that few programs are compiled, all of
them before the first request.
"""

import collections
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import jax
import numpy as np

from mae_jax.utils import console

Arrays = tuple[np.ndarray, ...]


class Program(NamedTuple):
  """A function of a batch of examples.

  Attributes:
    apply: maps arrays [B, ...] to a tree of NumPy arrays [B, ...].
    example: the arrays of one example, to compile `apply` with.
  """

  apply: Callable[..., Any]
  example: Arrays


class _Waiting(NamedTuple):
  arrays: Arrays
  future: futures.Future
  since: float  # time.monotonic()


class Batcher:
  """A thread that runs programs on batches of waiting examples."""

  def __init__(
    self,
    programs: Mapping[str, Program],
    batch_size: int,
    max_wait: float,
    on_batch: Callable[[str, int], object] = lambda name, images: None,
  ):
    """Compiles all programs and starts the thread.

    Args:
      programs: the programs by name.
      batch_size: examples at a time, at most.
      max_wait: seconds that an example waits for others, at most, while the
        device is free.
      on_batch: called with each batch's program and number of examples.
    """
    self._programs = programs
    self.sizes = batch_sizes(batch_size)
    self._max_wait = max_wait
    self._on_batch = on_batch
    self._queues: dict[str, collections.deque[_Waiting]] = {
      name: collections.deque() for name in programs
    }
    self._changed = threading.Condition()
    self._closed = False
    with console.progress_bar(
      len(programs) * len(self.sizes), unit="program"
    ) as bar:
      for program in programs.values():
        for size in self.sizes:
          self._apply(program, [program.example] * size)
          bar.update()
    self._thread = threading.Thread(target=self._run)
    self._thread.start()

  def __len__(self) -> int:
    """Counts the waiting examples, without those on the device."""
    return sum(map(len, self._queues.values()))

  def submit(self, name: str, arrays: Arrays) -> futures.Future:
    """Adds an example; returns the future of its row of the program's tree."""
    future: futures.Future = futures.Future()
    with self._changed:
      self._queues[name].append(_Waiting(arrays, future, time.monotonic()))
      self._changed.notify()
    return future

  def close(self) -> None:
    """Stops the thread after all waiting examples."""
    with self._changed:
      self._closed = True
      self._changed.notify()
    self._thread.join()

  def _take(self) -> tuple[str, list[_Waiting]] | None:
    """Waits for the next batch; returns None after `close`.

    A queue is due if it has a whole batch, or its first example waited long
    enough. The due queue whose first example is the oldest is next, so that no
    program waits for the others for long.
    """
    with self._changed:
      while True:
        now, size = time.monotonic(), self.sizes[-1]
        oldest = {
          name: queue[0].since for name, queue in self._queues.items() if queue
        }
        due = [
          name
          for name, since in oldest.items()
          if self._closed
          or len(self._queues[name]) >= size
          or since + self._max_wait <= now
        ]
        if due:
          name = min(due, key=lambda each: oldest[each])
          queue = self._queues[name]
          return name, [queue.popleft() for _ in range(min(len(queue), size))]
        if self._closed:
          return None
        left = min(oldest.values(), default=None)
        self._changed.wait(
          None if left is None else left + self._max_wait - now
        )

  def _run(self) -> None:
    while (taken := self._take()) is not None:
      name, batch = taken
      live = [
        each for each in batch if each.future.set_running_or_notify_cancel()
      ]
      if not live:
        continue
      self._on_batch(name, len(live))
      try:
        rows = self._apply(self._programs[name], [each.arrays for each in live])
      except Exception as error:
        for each in live:
          each.future.set_exception(error)
      else:
        for each, row in zip(live, rows, strict=True):
          each.future.set_result(row)

  def _apply(self, program: Program, examples: Sequence[Arrays]) -> list[Any]:
    """Runs a program on some examples; returns the row of each."""
    count = len(examples)
    size = next(each for each in self.sizes if each >= count)
    padded = [*examples, *[examples[-1]] * (size - count)]
    out = program.apply(*map(np.stack, zip(*padded, strict=True)))
    return [jax.tree.map(lambda x, k=k: x[k], out) for k in range(count)]


def batch_sizes(largest: int) -> tuple[int, ...]:
  """Returns the powers of two below `largest`, and `largest`."""
  powers = (1 << k for k in range(largest.bit_length()))
  return (*(size for size in powers if size < largest), largest)
