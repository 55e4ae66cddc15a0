"""Messages to the terminal; a closed terminal or pipe never ends a run.

Inside `as_library` nothing goes to the terminal.
"""

import contextlib
import contextvars
import dataclasses
import os
import pathlib
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import tqdm


class _Stderr:
  """A standard error stream that becomes silent when it is closed or full."""

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
_PACKAGE = str(pathlib.Path(__file__).parents[1])


@dataclasses.dataclass(frozen=True)
class _Library:
  notes: list[str]
  progress: bool

  def add(self, text: str) -> None:
    if text not in self.notes:  # a method may be called a thousand times
      self.notes.append(text)


_library: contextvars.ContextVar[_Library | None] = contextvars.ContextVar(
  "library", default=None
)


@contextlib.contextmanager
def as_library(notes: list[str], progress: bool = False) -> Iterator[None]:
  """Prints nothing in the block.

  Messages are added to `notes`, and warnings go to `warnings.warn`. Progress
  bars are drawn only with `progress`.
  """
  token = _library.set(_Library(notes, progress))
  try:
    yield
  finally:
    _library.reset(token)


def open_streams() -> None:
  """Opens the null device in place of standard streams that are closed.

  Otherwise the first files that a run opens get their numbers, and messages
  would be written into them.
  """
  for number, name in enumerate(("stdin", "stdout", "stderr")):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if getattr(sys, name) is None:
      mode = "w" if number else "r"
      setattr(sys, name, os.fdopen(number, mode, closefd=False))


def set_process(number: int) -> None:
  """Sets this process's number, which warnings then begin with."""
  global _process
  _process = number


def prefix() -> str:
  """Returns "process N: ", or "" for process 0."""
  return f"process {_process}: " if _process else ""


def is_first() -> bool:
  """Checks whether this is process 0, which prints messages for all."""
  return _process == 0


def info(text: str) -> None:
  """Prints to standard output without breaking a progress bar."""
  if library := _library.get():
    library.add(text)
    return
  # Characters that the stream cannot encode are escaped.
  encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
  text = escape(text).encode(encoding, "backslashreplace").decode(encoding)
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


def notice(text: str) -> None:
  """Prints to standard error what is worth knowing, and no warning."""
  if library := _library.get():
    library.add(text)
  else:
    tqdm.tqdm.write(escape(text), file=STDERR)


def progress_bar(
  total: int | None, unit: str = "image", **settings: Any
) -> tqdm.tqdm:
  """Makes tqdm's progress bar on standard error; `total` is None if unknown."""
  if (library := _library.get()) and not library.progress:
    settings["disable"] = True
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

  If all processes have the same warning (`shared`), only process 0 prints it.
  """
  if shared and _process:
    return
  if _library.get():
    # The warning points at the user's line, not at one of this package.
    warnings.warn(text, stacklevel=2, skip_file_prefixes=(_PACKAGE,))
  else:
    tqdm.tqdm.write(f"{prefix()}warning: {escape(text)}", file=STDERR)


def in_library() -> bool:
  """Checks whether this code runs inside `as_library`."""
  return _library.get() is not None


def final_message(text: str) -> None:
  """Prints why the process ends, even while another thread is printing."""
  # A progress bar has not ended its line.
  above = "\n" if getattr(tqdm.tqdm, "_instances", None) else ""
  with contextlib.suppress(OSError):  # the stream is closed
    line = f"{above}{prefix()}{escape(text)}\n"
    os.write(2, line.encode(errors="backslashreplace"))


def first_line(error: BaseException, most: int = 300) -> str:
  """Returns the first line of an error's message, truncated to `most`."""
  text = str(error).strip() or type(error).__name__
  line = text.splitlines()[0]
  return line if len(line) <= most else line[:most] + " ..."


def escape(text: str) -> str:
  """Escapes control characters, which a terminal would execute."""
  return re.sub(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda x: repr(x[0])[1:-1], text
  )


def _mute(stream: Any) -> None:
  # Otherwise flushing the buffer fails again when Python ends, and changes the
  # exit code.
  with contextlib.suppress(OSError, ValueError):  # the stream may be no file
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
