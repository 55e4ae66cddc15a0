"""Parameters of tests that `make test` leaves out, and `make test-all` runs."""

from __future__ import annotations

from typing import Any

import pytest


def slow(*values: Any) -> Any:
  """Returns the values of one case, marked slow."""
  return pytest.param(*values, marks=pytest.mark.slow)
