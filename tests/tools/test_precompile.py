"""What the demo compiles ahead of being asked."""

from __future__ import annotations

import queue
import threading

import pytest

from mae_jax.tools.demo import precompile


class Compiler:
  """Compiles one program at a time, when it is let."""

  def __init__(self):
    self.begun: queue.Queue[int] = queue.Queue()
    self.may_end = threading.Semaphore(0)

  def __call__(self, shown: int) -> None:
    self.begun.put(shown)
    self.may_end.acquire()

  def next(self) -> int:
    found = self.begun.get(timeout=20)
    self.may_end.release()
    return found


@pytest.fixture
def compiler():
  return Compiler()


def close(warmer: precompile.Precompiler, compiler: Compiler) -> None:
  compiler.may_end.release(1000)
  warmer.close()


def test_the_nearest_first_from_where_one_is(compiler):
  warmer = precompile.Precompiler(compiler, 100, 25)
  assert [compiler.next() for _ in range(4)] == [25, 24, 26, 23]
  assert compiler.begun.get(timeout=20) == 27  # and does not end yet
  with warmer.serving(60):
    compiler.may_end.release()
    # Someone waits: nothing else is begun.
    with pytest.raises(queue.Empty):
      compiler.begun.get(timeout=0.2)
  # What was served is there already.
  assert [compiler.next() for _ in range(4)] == [59, 61, 58, 62]
  close(warmer, compiler)


def test_each_once_and_no_more_than_may_be_asked(compiler):
  compiler.may_end.release(1000)
  warmer = precompile.Precompiler(compiler, 16, 6)
  found = [compiler.next() for _ in range(16)]
  assert sorted(found) == list(range(1, 17))
  with pytest.raises(queue.Empty):
    compiler.begun.get(timeout=0.2)
  close(warmer, compiler)


def test_far_from_what_was_asked_nothing_is_compiled(compiler):
  compiler.may_end.release(1000)
  warmer = precompile.Precompiler(compiler, 196, 49)
  found = [compiler.next() for _ in range(65)]
  assert sorted(found) == list(range(49 - 32, 49 + 33))
  with pytest.raises(queue.Empty):
    compiler.begun.get(timeout=0.2)
  close(warmer, compiler)


def test_closed_it_ends_after_the_compilation_under_way(compiler):
  warmer = precompile.Precompiler(compiler, 16, 6)
  assert compiler.begun.get(timeout=20) == 6
  closer = threading.Thread(target=warmer.close)
  closer.start()
  closer.join(0.2)
  assert closer.is_alive()
  compiler.may_end.release()
  closer.join(20)
  assert not closer.is_alive()
  assert compiler.begun.empty()
