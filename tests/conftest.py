"""Every test runs on eight CPU devices; nothing may have used JAX before."""

from __future__ import annotations

import os
import signal
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Threads of XLA: with as few as there are cores, the collectives of one device
# can take those that another one needs to join them, for good.
os.environ.setdefault("NPROC", "32")

# Compiling takes most of a test's time, and most of that is LLVM's optimization
# of code that then runs for a second. XLA's own passes (partitioning, fusion,
# layouts) stay as in any run.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1",
)

import jax
import torch

# What is ignored here would be in the programs that tests start, and what is
# caught is default there. Under nohup, or after `&` in a script, signals are
# ignored; libtpu has SIGHUP ignored too, if nobody catches it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, lambda number, frame: None)

jax.config.update("jax_num_cpu_devices", 8)
torch.set_num_threads(1)

# Many tests build the same program again: it is compiled once a session, by
# whichever process comes to it first.
_SHARED = "MAE_JAX_TEST_CACHE"
if _SHARED not in os.environ:
  _CACHE = tempfile.TemporaryDirectory()
  os.environ[_SHARED] = _CACHE.name
jax.config.update("jax_compilation_cache_dir", os.environ[_SHARED])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
# Neither are lists of files kept where a user's own lie.
os.environ["XDG_CACHE_HOME"] = os.environ[_SHARED]
