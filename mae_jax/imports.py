"""Keeps out of the start what a package imports and nothing here uses."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def without(*packages: str) -> Iterator[None]:
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
