"""Tests of the compile cache: a second run compiles nothing."""

from __future__ import annotations

import errno
import json
import os

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from bench.lib import run_outputs
from mae_jax.utils import compile_cache, storage
from mae_jax.utils.errors import ConfigError
from tests.helpers import commands

# Runs the program, and prints JAX's cache events at the end.
COUNTING = """
import collections, json, sys, jax
found = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: found.update([name]))
from mae_jax import main
try:
  main.main()
finally:
  print(json.dumps(found))
"""


def train(workdir, cache):
  """Runs the program; returns the numbers of cache requests and cache hits."""
  args = (
    "--config=configs/digits.py",
    f"--workdir={workdir}",
    f"--config.train.compile_cache={cache}",
    "--config.train.length=3 steps",
    "--config.train.log_every=1 steps",
    "--config.optim.warmup=1 steps",
    "--config.data.batch_size=32",
    "--config.data.eval_split=",
    "--config.model.depth=1",
  )
  done = commands.python("-c", COUNTING, *args)
  assert done.returncode == 0, done.stderr
  assert done.stdout.count("first step after ") == 1
  found = json.loads(done.stdout.splitlines()[-1])
  prefix = "/jax/compilation_cache/"
  return (
    found[f"{prefix}compile_requests_use_cache"],
    found.get(f"{prefix}cache_hits", 0),
  )


def result(workdir):
  """Returns a run's log without times, and its state."""
  with ocp.StandardCheckpointer() as reader:
    checkpoint = workdir / "checkpoints" / "3"
    state = [reader.restore(checkpoint / x) for x in ("params", "opt_state")]
  return run_outputs.read_metrics(workdir), state


@pytest.mark.slow
def test_a_second_run_compiles_nothing_and_is_the_same(tmp_path):
  cache = tmp_path / "made" / "cache"
  asked, answered = train(tmp_path / "first", cache)
  assert answered < asked
  before = {path.name for path in cache.iterdir()}
  assert any("train_step" in name for name in before)
  asked, answered = train(tmp_path / "second", cache)
  assert answered == asked > 1
  assert {path.name for path in cache.iterdir()} == before
  (lines, state), (others, other) = map(
    result, (tmp_path / "first", tmp_path / "second")
  )
  assert lines == others
  compiled = [
    "start_compile" in json.loads(line)
    for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()
    if "loss" in line
  ]
  assert compiled == [True, False, False]
  jax.tree.map(np.testing.assert_array_equal, state, other)


@pytest.fixture
def settings():
  """A function that reads JAX's settings, which are restored afterwards."""
  names = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
  )
  before = {name: getattr(jax.config, name) for name in names}
  yield lambda: tuple(getattr(jax.config, name) for name in names)
  for name, value in before.items():
    jax.config.update(name, value)


def test_a_relative_directory_is_made(settings, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv(
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False
  )
  compile_cache.enable("a/b")
  assert settings() == (str(tmp_path / "a" / "b"), 0)
  assert not list((tmp_path / "a" / "b").iterdir())


def test_an_empty_setting_leaves_jax_alone(settings, tmp_path, monkeypatch):
  before = settings()
  compile_cache.enable("")
  assert settings() == before
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
  compile_cache.enable(str(tmp_path))
  assert settings() == (str(tmp_path), before[1])


def test_an_unwritable_directory_is_an_error(settings, tmp_path, monkeypatch):
  before = settings()
  (tmp_path / "file").touch()
  with pytest.raises(ConfigError, match=r"compile_cache=.*be made"):
    compile_cache.enable(f"{tmp_path}/file/x")

  def full(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

  monkeypatch.setattr(storage, "check_writable", full)
  with pytest.raises(ConfigError, match=r"be written \(No space"):
    compile_cache.enable(str(tmp_path))
  assert settings() == before
