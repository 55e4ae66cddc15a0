"""Tests of programs that the demo compiles in advance."""

from __future__ import annotations

import queue
import threading

import pytest

from mae_jax.tools.demo import precompile


class Compiler:
  """A fake compiler that finishes a program when the test allows it."""

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


def test_the_nearest_programs_are_compiled_first(compiler):
  warmer = precompile.Precompiler(compiler, 100, 25)
  assert [compiler.next() for _ in range(4)] == [25, 24, 26, 23]
  assert compiler.begun.get(timeout=20) == 27  # is still compiling
  with warmer.serving(60):
    compiler.may_end.release()
    # A request waits, so no other compilation starts.
    with pytest.raises(queue.Empty):
      compiler.begun.get(timeout=0.2)
  # The served program is compiled already.
  assert [compiler.next() for _ in range(4)] == [59, 61, 58, 62]
  close(warmer, compiler)


def test_each_program_is_compiled_once_within_bounds(compiler):
  compiler.may_end.release(1000)
  warmer = precompile.Precompiler(compiler, 16, 6)
  found = [compiler.next() for _ in range(16)]
  assert sorted(found) == list(range(1, 17))
  with pytest.raises(queue.Empty):
    compiler.begun.get(timeout=0.2)
  close(warmer, compiler)


def test_nothing_is_compiled_far_from_the_last_request(compiler):
  compiler.may_end.release(1000)
  warmer = precompile.Precompiler(compiler, 196, 49)
  found = [compiler.next() for _ in range(65)]
  assert sorted(found) == list(range(49 - 32, 49 + 33))
  with pytest.raises(queue.Empty):
    compiler.begun.get(timeout=0.2)
  close(warmer, compiler)


def test_closing_waits_for_the_running_compilation(compiler):
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
