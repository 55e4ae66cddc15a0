"""A process of its own that is asked, a line at a time, and answers."""

from __future__ import annotations

import os
import pathlib
import subprocess
from collections.abc import Sequence

_HERE = pathlib.Path(__file__).parents[2]


class Worker:
  """A started process, which has said in a first line that it is ready."""

  def __init__(self, command: Sequence[str], **variables: str):
    """Starts it at the root of the project, on CPU, and waits.

    Args:
      command: the program and its arguments.
      **variables: of its environment, besides those that are here.

    Raises:
      RuntimeError: as each method does, if it ended; it has told why.
    """
    self._process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=_HERE,
      env=os.environ
      | {"PYTHONPATH": str(_HERE), "JAX_PLATFORMS": "cpu"}
      | variables,
    )
    self.pid = self._process.pid
    self._line()

  def ask(self, text: str, answers: int = 1) -> list[str]:
    """Writes a line, and reads so many."""
    assert self._process.stdin is not None
    self._process.stdin.write(f"{text}\n")
    self._process.stdin.flush()
    return [self._line() for _ in range(answers)]

  def _line(self) -> str:
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError("a process of this benchmark ended: see above")
    return line

  def close(self) -> None:
    """Ends it."""
    assert self._process.stdin is not None
    self._process.stdin.close()
    self._process.terminate()
    self._process.wait()
