"""Lines for whoever watches a run, who may go away: no print may end it."""

from __future__ import annotations

import contextlib
import os
import re
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
_process = 0


def set_process(number: int) -> None:
  """From now on warnings say which of several processes they are of."""
  global _process
  _process = number


def prefix() -> str:
  """What begins a line of any process but the first."""
  return f"process {_process}: " if _process else ""


def is_first() -> bool:
  """Whether this is the process that speaks for all."""
  return _process == 0


def info(text: str) -> None:
  """Prints to standard output without breaking a progress bar."""
  # Characters that the stream cannot encode are escaped.
  encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
  text = _escape(text).encode(encoding, "backslashreplace").decode(encoding)
  on_terminal = _is_terminal(sys.stdout) and _is_terminal(sys.stderr)
  try:
    with (
      tqdm.tqdm.external_write_mode(file=STDERR)
      if on_terminal
      else contextlib.nullcontext()
    ):
      print(text, flush=True)
  except (OSError, ValueError):
    _mute(sys.stdout)


def progress_bar(
  total: int | None, unit: str = "image", **settings: Any
) -> tqdm.tqdm:
  """Makes a progress bar on standard error.

  Args:
    total: how many units there are; None if that is not known.
    unit: what is counted.
    **settings: more arguments of tqdm.
  """
  return tqdm.tqdm(
    total=total,
    unit=unit,
    file=STDERR,
    dynamic_ncols=True,
    # A log file need not hold every movement of the bar.
    mininterval=0.2 if _is_terminal(sys.stderr) else 20,
    **settings,
  )


def _is_terminal(stream: Any) -> bool:
  return stream is not None and stream.isatty()  # None: it is closed


def warn(text: str, *, shared: bool = False) -> None:
  """Prints a warning to standard error without breaking a progress bar.

  Args:
    text: of the warning.
    shared: whether all processes have it: then the first one says it.
  """
  if not (shared and _process):
    tqdm.tqdm.write(f"{prefix()}warning: {_escape(text)}", file=STDERR)


def final_message(text: str) -> None:
  """Prints why the process ends; also while another thread is printing."""
  # A progress bar leaves its line open.
  above = "\n" if getattr(tqdm.tqdm, "_instances", None) else ""
  with contextlib.suppress(OSError):  # nobody is there
    os.write(2, f"{above}{prefix()}{text}\n".encode())


def first_line(error: BaseException, most: int = 300) -> str:
  """What an error says, as part of a line."""
  text = str(error).strip() or type(error).__name__
  line = text.splitlines()[0]
  return line if len(line) <= most else line[:most] + " ..."


def _escape(text: str) -> str:
  """Control characters escaped, as a terminal would do what they say."""
  return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", lambda x: repr(x[0])[1:-1], text)


def _mute(stream: Any) -> None:
  # Else what waits in the stream's buffer fails again when Python ends, and
  # changes the exit code.
  with contextlib.suppress(OSError, ValueError):  # it may be no file
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
