"""Tests that a directory that a run cannot use is refused before any work."""

from __future__ import annotations

import os
import socket

import pytest

from mae_jax.checkpoints import workdir
from mae_jax.utils.errors import ConfigError


def dangling(path):
  path.symlink_to("/nowhere")


def unix_socket(path):
  with socket.socket(socket.AF_UNIX) as server:
    server.bind(str(path))


@pytest.mark.parametrize(
  ("name", "make", "reason"),
  [
    ("checkpoints", dangling, "is a link to nothing"),
    ("checkpoints", lambda path: path.write_text("x"), "is not a directory"),
    ("metrics.jsonl", os.mkfifo, "is neither a file nor a directory"),
    (".lock", os.mkfifo, "is neither a file nor a directory"),
    ("run.json", unix_socket, "is neither a file nor a directory"),
  ],
)
def test_what_would_stop_a_run_later_is_named(name, make, reason, tmp_path):
  make(tmp_path / name)
  with (
    pytest.raises(ConfigError, match=f"{tmp_path / name} {reason}: remove it"),
    workdir.hold(tmp_path),
  ):
    pass


def test_links_to_other_disks_are_used(tmp_path):
  (tmp_path / "disk").mkdir()
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "disk")
  with workdir.hold(tmp_path / "run") as held:
    held.check()
