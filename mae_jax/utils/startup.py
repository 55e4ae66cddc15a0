"""A timer for the start of a process, until its first train step.

A process starts once, so the timer is global. It ends with the first step: a
second run in the same process is not timed.
"""

import contextlib
import os
import pathlib
import sys
import time
from collections.abc import Iterator

# The parts of a start, in order, as printed.
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
  """Starts the timer, backdated to the process start; until now are imports."""
  global _began, _last
  _began = _last = time.monotonic() - _age()
  _parts.clear()
  mark("imports")


def mark(part: str) -> None:
  """Adds the time since the last call to a part."""
  global _last
  if _last is not None:
    now = time.monotonic()
    _parts[part] = _parts.get(part, 0.0) + now - _last
    _last = now


def first_step() -> dict[str, float]:
  """Ends the timer after the first step.

  Returns:
    The total as `start_seconds`, and each part as `start_PART`, in seconds.
    Empty if the timer was not started, or has ended before.
  """
  global _last
  if _last is None:
    return {}
  seconds = {"start_seconds": _last - _began}
  seconds |= {f"start_{part}": _parts[part] for part in PARTS if part in _parts}
  _last = None
  return seconds


def describe(seconds: dict[str, float]) -> str:
  """Formats the result of `first_step`, without parts below 0.05 seconds."""
  parts = {part: seconds.get(f"start_{part}", 0.0) for part in PARTS}
  return f"first step after {seconds['start_seconds']:.1f} s: " + ", ".join(
    f"{PARTS[part]} {time:.1f}" for part, time in parts.items() if time >= 0.05
  )


def _age() -> float:
  """Returns the seconds since this process started."""
  try:
    stat = pathlib.Path("/proc/self/stat").read_text()
    # After the program's name, which may contain spaces and brackets.
    ticks = int(stat.rpartition(")")[2].split()[19])
    begin = ticks / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - begin
  except (OSError, AttributeError):  # on macOS; CPU time is nearly the same
    return time.process_time()


@contextlib.contextmanager
def hide_packages(*packages: str) -> Iterator[None]:
  """Hides optional packages from imports inside the block.

  The imported code sees the packages as not installed. Packages that were
  imported before stay, and all can be imported again later.
  """
  hidden = [name for name in packages if name not in sys.modules]
  # None in sys.modules makes an import raise ModuleNotFoundError.
  sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
  try:
    yield
  finally:
    for name in hidden:
      del sys.modules[name]
