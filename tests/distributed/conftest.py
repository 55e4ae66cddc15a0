"""A fixture that starts programs quickly, by forking a warm process."""

from __future__ import annotations

import pytest

from bench.lib.fork_server import ForkServer


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory):
  """A process that starts the program by forking."""
  with ForkServer(tmp_path_factory.mktemp("processes")) as opened:
    yield opened
