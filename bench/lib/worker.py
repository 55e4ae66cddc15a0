"""Runs a program that reads one request a line and prints its answers."""

from __future__ import annotations

import os
import pathlib
import subprocess
from collections.abc import Sequence

_ROOT = pathlib.Path(__file__).parents[2]


class Worker:
  """A running program that has printed a first line to say that it is ready."""

  def __init__(self, command: Sequence[str], **variables: str):
    """Starts the program at the project's root, on CPU, and waits for a line.

    Args:
      command: the program and its arguments.
      **variables: environment variables to add.

    Raises:
      RuntimeError: if the program ended. Each method raises this error. The
        program has printed the reason.
    """
    self._process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=_ROOT,
      env=os.environ
      | {"PYTHONPATH": str(_ROOT), "JAX_PLATFORMS": "cpu"}
      | variables,
    )
    self.pid = self._process.pid
    self._line()

  def ask(self, text: str, answers: int = 1) -> list[str]:
    """Writes a line, and reads `answers` lines."""
    assert self._process.stdin is not None
    self._process.stdin.write(f"{text}\n")
    self._process.stdin.flush()
    return [self._line() for _ in range(answers)]

  def _line(self) -> str:
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(
        "a process of this benchmark ended; its own error is printed above"
      )
    return line

  def close(self) -> None:
    """Ends the program."""
    assert self._process.stdin is not None
    self._process.stdin.close()
    self._process.terminate()
    self._process.wait()
