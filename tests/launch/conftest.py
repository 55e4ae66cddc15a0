"""Fixtures of the tests of launch scripts."""

from __future__ import annotations

import pytest

from tests.helpers.fake_cluster import World


@pytest.fixture
def world(tmp_path):
  """A directory with fake programs, removed after each test."""
  opened = World(tmp_path)
  yield opened
  opened.close()
