"""JAX's persistent cache of compiled programs, for a faster next start."""

import os

import jax

from mae_jax.utils import storage
from mae_jax.utils.errors import ConfigError


def enable(directory: str) -> None:
  """Turns the cache on; process 0 writes to it, and all processes read.

  Args:
    directory: `train.compile_cache`; "" leaves the cache to JAX's own settings,
      such as JAX_COMPILATION_CACHE_DIR.

  Raises:
    ConfigError: if the directory cannot be made or written.
  """
  if not directory:
    return
  path = storage.make_directory(directory, "train.compile_cache")
  try:
    storage.check_writable(path)
  except OSError as error:
    raise ConfigError(
      f"train.compile_cache={directory} cannot be written "
      f"({error.strerror or error}): name a writable directory, or omit it"
    ) from error
  jax.config.update("jax_compilation_cache_dir", os.fspath(path))
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    # By default JAX does not cache programs that compile in less than a second.
    # A run has a dozen of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  if storage.is_remote(path):
    # XLA's own cache, for GPU kernels, works only with local files.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
