"""Seconds from the start of the process to its first step, and with what.

There is one start to a process, so that its clock is the module's. What comes
after the first step, such as a second run, is no part of it.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
import time
from collections.abc import Iterator

# In the order in which they come.
PARTS = {
  "imports": "importing",
  "processes": "meeting the other processes",
  "devices": "opening devices",
  "data": "opening data",
  "state": "making or reading the state",
  "evaluation": "an evaluation that was due",
  "images": "first images",
  "compile": "compiling and a step",
}

_began = 0.0
_last: float | None = None
_parts: dict[str, float] = {}


def start_timer() -> None:
  """Starts the clock, back when the process did: until now it has imported."""
  global _began, _last
  _began = _last = time.monotonic() - _age()
  _parts.clear()
  mark("imports")


def mark(part: str) -> None:
  """The time since the last call was spent on this part."""
  global _last
  if _last is not None:
    now = time.monotonic()
    _parts[part] = _parts.get(part, 0.0) + now - _last
    _last = now


def first_step() -> dict[str, float]:
  """The first step is done, and so is the start.

  Returns:
    Seconds of the whole as `start_seconds`, and of each part as `start_PART`;
    nothing if this was no step of a program, or not its first.
  """
  global _last
  if _last is None:
    return {}
  seconds = {"start_seconds": _last - _began}
  seconds |= {f"start_{part}": _parts[part] for part in PARTS if part in _parts}
  _last = None
  return seconds


def describe(seconds: dict[str, float]) -> str:
  """What `first_step` returned, in a line; what took no time is left out."""
  parts = {part: seconds.get(f"start_{part}", 0.0) for part in PARTS}
  return f"first step after {seconds['start_seconds']:.1f} s: " + ", ".join(
    f"{PARTS[part]} {time:.1f}" for part, time in parts.items() if time >= 0.05
  )


def _age() -> float:
  """Seconds since this process began."""
  try:
    stat = pathlib.Path("/proc/self/stat").read_text()
    # Behind the program's name, which may have blanks and brackets.
    ticks = int(stat.rpartition(")")[2].split()[19])
    begin = ticks / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - begin
  except (OSError, AttributeError):  # on macOS; nearly the same
    return time.process_time()


@contextlib.contextmanager
def hide_packages(*packages: str) -> Iterator[None]:
  """What is imported inside finds these as if they were not installed.

  For those that would be used if they were there, but can do without. Later
  they may be imported as ever; those that were before stay.
  """
  absent = [name for name in packages if name not in sys.modules]
  # Python's own way to say that there is no such module.
  sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
  try:
    yield
  finally:
    for name in absent:
      del sys.modules[name]
