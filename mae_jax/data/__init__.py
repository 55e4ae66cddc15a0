"""Images to batches: the one package that imports TensorFlow.

TensorFlow reads, decodes and shuffles on the host, and must leave the
accelerators to JAX.
"""

from __future__ import annotations

import os

from mae_jax.utils import startup

# Read once, when TensorFlow's C++ side is loaded. No operation used here gains
# by oneDNN, whose banner no log level stops.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

# Images are worked on side by side; to divide the work on one among threads
# costs a fifth of its time in waking them, more with more cores.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

# Keras and what it imports would take half a second or more.
with startup.hide_packages("keras", "tf_keras"):
  import tensorflow as tf

tf.config.set_visible_devices([], "GPU")
