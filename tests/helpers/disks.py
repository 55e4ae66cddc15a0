"""Disks that fail."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def full_disk(largest: int = 100) -> Iterator[None]:
  """Limits the size of files that this process writes.

  The system refuses the rest of a write, in Python and in C++, as on a full
  disk or beyond a quota, but with another error number.
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
