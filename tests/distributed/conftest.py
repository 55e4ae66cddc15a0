"""Processes of the program that are started without importing everything."""

from __future__ import annotations

import pytest

from bench.lib import processes


@pytest.fixture(scope="session")
def nursery(tmp_path_factory):
  """Starts the program by forking."""
  with processes.Nursery(tmp_path_factory.mktemp("lives")) as opened:
    yield opened
