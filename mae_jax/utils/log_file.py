"""An append-only log file, for disks that fill up and for buckets.

Bytes that cannot be written wait in memory until the next write, so a full disk
does not end a run at once. `flush` raises the error: the log of a step must be
on disk before the checkpoint of that step.
"""

import os

from etils import epath

from mae_jax.utils import storage


class LogFile:
  """An append-only file, which `append` writes to at once.

  Objects in a bucket cannot grow, so there `flush` uploads the whole file.

  Attributes:
    path: path of the file.
    error: the error of the last write, or None.
  """

  def __init__(self, path: epath.Path):
    """Opens the file, and appends to it if it exists.

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
    """Appends bytes; on an error, sets `error` and keeps them in memory."""
    self._waiting += data
    if not self._remote:
      self._try(sync=False)

  def drop(self) -> None:
    """Discards unwritten bytes, and writes nothing from now on."""
    self._waiting, self._closed = b"", True

  def flush(self) -> None:
    """Writes all bytes to the disk (fsync) or bucket.

    Raises:
      OSError: if that fails.
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
    # Not in append mode: after a partial write, the next write starts where the
    # last complete one ended. "r+b" fails for a file that was deleted, which
    # must not appear again with a hole at its start.
    with open(self.path, "r+b" if self._created else "xb") as file:
      self._created = True
      if file.seek(0, os.SEEK_END) < self._size:
        raise OSError(f"{self.path} was truncated by another program")
      file.seek(self._size)
      if self._waiting:
        file.write(self._waiting)
        file.truncate()
      file.flush()
      if sync:  # survives a power failure
        os.fsync(file.fileno())
    self._size += len(self._waiting)
    self._waiting = b""
