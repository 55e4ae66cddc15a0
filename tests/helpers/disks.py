"""Disks that fail, for tests."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def full_disk(largest: int = 100) -> Iterator[None]:
  """No file of this process can grow beyond so many bytes.

  The system refuses the rest of a write, in Python and in C++ alike, as it does
  on a full disk or beyond a quota, and under another error number.
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
