"""What was compiled, kept for the next start: JAX's persistent cache."""

from __future__ import annotations

import os

import jax

from mae_jax.utils import storage
from mae_jax.utils.errors import ConfigError


def enable(directory: str) -> None:
  """From now on what is compiled is kept there, and looked for.

  Of several processes the first one writes, and all read.

  Args:
    directory: `train.compile_cache`; "" leaves it to JAX's own settings, such
      as JAX_COMPILATION_CACHE_DIR.

  Raises:
    ConfigError: if it cannot be made or written.
  """
  if not directory:
    return
  path = storage.make_directory(directory, "train.compile_cache")
  try:
    storage.check_writable(path)
  except OSError as error:
    raise ConfigError(
      f"train.compile_cache={directory} cannot be written "
      f"({error.strerror or error}): name a directory that can, or leave it out"
    ) from error
  jax.config.update("jax_compilation_cache_dir", os.fspath(path))
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    # JAX leaves out what takes less than a second. A run has a dozen of such.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  if storage.is_remote(path):
    # XLA's own, of kernels for GPUs, is of files.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
