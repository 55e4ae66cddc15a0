"""Tests of paths and errors on disks and in buckets."""

from __future__ import annotations

import errno
import sys

import pytest
import tensorflow as tf

from mae_jax.utils import errors, storage
from mae_jax.utils.errors import ConfigError


def test_errors_of_a_buckets_client_become_os_errors():
  with (
    pytest.raises(OSError, match="no permission") as caught,
    storage.os_errors("gs://bucket/run"),
  ):
    raise tf.errors.PermissionDeniedError(None, None, "no permission\nat all")
  assert caught.value.filename == "gs://bucket/run"
  assert caught.value.strerror == "no permission"
  line = errors.explain(caught.value)
  assert line.startswith("gs://bucket/run: no permission: check that")


@pytest.mark.parametrize(
  "error", [ValueError("x"), KeyError("y"), OSError(errno.ENOSPC, "full")]
)
def test_other_errors_stay_unchanged(error):
  with pytest.raises(type(error)) as caught, storage.os_errors("somewhere"):
    raise error
  assert caught.value is error


def test_a_missing_library_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
  with pytest.raises(ConfigError) as caught:
    storage.make_directory("gs://bucket/run", "--workdir")
  assert str(caught.value).startswith("--workdir=gs://bucket/run needs google-")
  assert "pip install 'mae_jax[gcs]'" in str(caught.value)


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://", "gs:///run"])
def test_an_invalid_address(address):
  with pytest.raises(ConfigError, match="gs://BUCKET/DIRECTORY"):
    storage.make_directory(address, "--workdir")


def test_absolute_paths(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert str(storage.absolute("a")) == f"{tmp_path}/a"
  assert str(storage.absolute("gs://bucket/a")) == "gs://bucket/a"


def test_paths_that_cannot_be_absolute(tmp_path, monkeypatch):
  with pytest.raises(ConfigError, match=r"plain path such as /x, or gs://"):
    storage.absolute("file:///x")
  gone = tmp_path / "gone"
  gone.mkdir()
  monkeypatch.chdir(gone)
  gone.rmdir()
  with pytest.raises(ConfigError, match=r"x is relative to the .* deleted"):
    storage.absolute("x")
