"""Configures JAX for all tests: eight CPU devices. Runs before JAX starts."""

from __future__ import annotations

import gc
import os
import signal
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA's number of threads. With only as many threads as cores, collectives of
# one device can occupy the threads that another device needs, and hang.
os.environ.setdefault("NPROC", "32")

# Most of a test's time is LLVM's optimization of code that runs for a second.
# XLA's own passes (partitioning, fusion, layouts) are the same as in any run.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1",
)

import jax
import pytest
import torch

# Programs that tests start inherit ignored signals, but not handlers. nohup, or
# `&` in a script, ignores signals, and libtpu ignores SIGHUP unless it has a
# handler.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, lambda number, frame: None)

jax.config.update("jax_num_cpu_devices", 8)
torch.set_num_threads(1)
# Tracing makes many objects that live on. Looking for garbage among them each
# time that some hundreds are new would take an eighth of the tests' time.
gc.set_threshold(100_000, 50, 100)

# Many tests build the same program. All processes of a session share one cache,
# so each program is compiled once.
_SHARED = "MAE_JAX_TEST_CACHE"
if _SHARED not in os.environ:
  _CACHE = tempfile.TemporaryDirectory()
  os.environ[_SHARED] = _CACHE.name
jax.config.update("jax_compilation_cache_dir", os.environ[_SHARED])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
# Keeps lists of files out of the user's own cache directory.
os.environ["XDG_CACHE_HOME"] = os.environ[_SHARED]


@pytest.fixture(scope="session")
def fork_server():
  """Starts the program by forking, without importing everything each time."""
  from tests.helpers import commands  # imports TensorFlow, after the settings

  return commands.fork_server()
