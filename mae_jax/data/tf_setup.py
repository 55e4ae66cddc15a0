"""The one import of TensorFlow, which must leave accelerators to JAX.

TensorFlow reads, decodes and shuffles training images on the host. Modules
import it from here, so that it is set up before its first use:

    from mae_jax.data.tf_setup import tf
"""

import contextlib
import os
from collections.abc import Iterator

from mae_jax.utils import startup

# TensorFlow reads these while it is imported. No operation used here is faster
# with oneDNN, and no log level silences the oneDNN banner.
_ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}
_THREADS = "TF_NUM_INTRAOP_THREADS"


@contextlib.contextmanager
def _environment() -> Iterator[None]:
  """Sets variables that the user has not set; removes them at the end."""
  added = {k: v for k, v in _ENVIRONMENT.items() if k not in os.environ}
  os.environ.update(added)
  try:
    yield
  finally:
    for name in added:
      del os.environ[name]


# Importing Keras and its dependencies would take half a second or more.
with _environment(), startup.hide_packages("keras", "tf_keras"):
  import tensorflow as tf

with contextlib.suppress(RuntimeError):  # the user's program has set it up
  tf.config.set_visible_devices([], "GPU")
  # Images are processed in parallel. Splitting one image's work among threads
  # spends a fifth of the time on waking them, and more on more cores.
  if _THREADS not in os.environ:
    tf.config.threading.set_intra_op_parallelism_threads(1)

__all__ = ["tf"]
