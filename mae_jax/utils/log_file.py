"""A file that only grows, on disks that fill up and in buckets.

What cannot be written waits in memory, and the next write tries again: a run
need not end because a log could not be written for a while. `flush` is where
that becomes an error: what is logged about a step must be safe before the
checkpoint of that step is.
"""

from __future__ import annotations

import os

from etils import epath

from mae_jax.utils import storage


class LogFile:
  """Appends bytes to a file; each `append` is in the file when it returns.

  In a bucket, whose objects cannot grow, `flush` uploads the whole file.

  Attributes:
    path: of the file.
    error: why the last write failed, or None.
  """

  def __init__(self, path: epath.Path):
    """Goes on at the end of the file, if there is one.

    Raises:
      OSError: if it cannot be read.
    """
    self.path = path
    self.error: OSError | None = None
    self._remote = storage.is_remote(path)
    with storage.os_errors(path):
      exists = path.exists()
      self._size = path.stat().length if exists else 0
      self._waiting = b""
      if self._remote and exists:
        self._waiting = path.read_bytes()
    self._created = exists
    self._closed = False

  def append(self, data: bytes) -> None:
    """Adds bytes; an error is kept in `error`, and the bytes in memory."""
    self._waiting += data
    if not self._remote:
      self._try(sync=False)

  def drop(self) -> None:
    """Forgets what was not written, and writes nothing any more."""
    self._waiting, self._closed = b"", True

  def flush(self) -> None:
    """Makes all of it safe.

    Raises:
      OSError: if that is not possible now.
    """
    self._try(sync=True)
    if self.error is not None:
      raise self.error

  def _try(self, sync: bool) -> None:
    if self._closed:
      return
    try:
      if self._remote:
        storage.write_atomic(self.path, self._waiting)
      elif self._waiting or sync:
        self._write(sync)
      self.error = None
    except OSError as error:
      self.error = error

  def _write(self, sync: bool) -> None:
    # Not in append mode: after a write that stopped in the middle, the next one
    # begins where the last good one ended. And a file that was there and is no
    # more must not appear again with a hole in front.
    with open(self.path, "r+b" if self._created else "xb") as file:
      self._created = True
      if file.seek(0, os.SEEK_END) < self._size:
        raise OSError(f"{self.path} was cut off by somebody else")
      file.seek(self._size)
      if self._waiting:
        file.write(self._waiting)
        file.truncate()
      file.flush()
      if sync:  # also against a loss of power
        os.fsync(file.fileno())
    self._size += len(self._waiting)
    self._waiting = b""
