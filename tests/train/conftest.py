"""Fixtures for runs in their own processes."""

from __future__ import annotations

import pytest

from tests.helpers import commands


@pytest.fixture(scope="session")
def fork_server():
  """Starts the program by forking, without importing everything each time."""
  return commands.fork_server()
