"""Worlds of stand-ins, taken down after each test."""

from __future__ import annotations

import pytest

from tests.helpers import fake_cluster as worlds


@pytest.fixture
def world(tmp_path):
  made = worlds.World(tmp_path)
  yield made
  made.close()
