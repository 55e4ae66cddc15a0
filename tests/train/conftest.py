"""Whole runs as processes of their own, which may be signalled and killed."""

from __future__ import annotations

import pytest

from bench.lib import processes


@pytest.fixture(scope="session")
def nursery(tmp_path_factory):
  """Starts the program without importing everything each time."""
  with processes.Nursery(tmp_path_factory.mktemp("lives")) as opened:
    yield opened
