"""Fixtures for runs in their own processes."""

from __future__ import annotations

import pytest

from bench.lib.fork_server import ForkServer


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory):
  """Starts the program without importing everything each time."""
  with ForkServer(tmp_path_factory.mktemp("processes")) as opened:
    yield opened
