"""The part that sinks with one append-only file share."""

import contextlib

from etils import epath

from mae_jax.utils import log_file


class FileSink:
  """A sink that appends records to a file; see `Sink`."""

  def __init__(self, path: epath.Path):
    """Opens the file, and appends to it if it exists.

    Raises:
      OSError: if it cannot be read.
    """
    self._file = log_file.LogFile(path)

  @property
  def error(self) -> OSError | None:
    """The error of the last write."""
    return self._file.error

  def flush(self) -> None:
    """Writes all records to disk."""
    self._file.flush()

  def abandon(self) -> None:
    """Discards records that are not written."""
    self._file.drop()

  def close(self, *, finished: bool) -> None:
    """Writes pending records if possible."""
    with contextlib.suppress(OSError):  # it was reported before
      self.flush()
