"""The input pipeline: image sources and the tf.data graph that makes batches.

TensorFlow reads, decodes and shuffles on the host, and must leave the
accelerators to JAX. So this file sets TensorFlow up, once, before its import.
"""

import os

from mae_jax.utils import startup

# TensorFlow reads these when its C++ library loads. No operation used here is
# faster with oneDNN, and no log level silences the oneDNN banner.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

# Images are processed in parallel. Splitting one image's work among threads
# spends a fifth of the time on waking them, and more on more cores.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

# Importing Keras and its dependencies would take half a second or more.
with startup.hide_packages("keras", "tf_keras"):
  import tensorflow as tf

tf.config.set_visible_devices([], "GPU")
