"""Lines for whoever watches a run, who may go away: no print may end it."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

import tqdm


class _Stderr:
  """Standard error, until it is closed or full; then nothing."""

  def write(self, text: str) -> int:
    try:
      return sys.stderr.write(text)
    except (OSError, ValueError):
      _mute(sys.stderr)
      return len(text)

  def flush(self) -> None:
    try:
      sys.stderr.flush()
    except (OSError, ValueError):
      _mute(sys.stderr)

  def __getattr__(self, name: str) -> Any:
    return getattr(sys.stderr, name)


STDERR = _Stderr()


def say(text: str) -> None:
  """Prints to standard output."""
  try:
    print(text, flush=True)
  except (OSError, ValueError):
    _mute(sys.stdout)


def warn(text: str) -> None:
  """Prints a warning to standard error without breaking a progress bar."""
  tqdm.tqdm.write(f"warning: {text}", file=STDERR)


def first_line(error: BaseException, most: int = 300) -> str:
  """What an error says, as part of a line."""
  text = str(error).strip() or type(error).__name__
  line = text.splitlines()[0]
  return line if len(line) <= most else line[:most] + " ..."


def _mute(stream: Any) -> None:
  # Else what waits in the stream's buffer fails again when Python ends, and
  # changes the exit code.
  with contextlib.suppress(OSError, ValueError):  # it may be no file
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
