"""Tests of streams that the garbage collector closes."""

from __future__ import annotations

import threading
import time

import numpy as np
import tensorflow as tf
from tensorflow.python.util import lock_util

from mae_jax.data import tf_iterator


def slow_dataset(started: threading.Event) -> tf.data.Dataset:
  """Makes an endless dataset whose threads call Python."""

  def python(number: np.ndarray) -> np.ndarray:
    started.set()
    time.sleep(0.001)  # holds the work, so that threads are busy at the end
    return number

  return tf.data.Dataset.range(2**40).map(
    lambda x: {
      "x": tf.ensure_shape(tf.numpy_function(python, [x], tf.int64), [])
    },
    num_parallel_calls=4,
  )


def test_a_stream_may_be_collected_inside_tensorflows_locks(monkeypatch):
  # A graph's lock is not reentrant, and the garbage collector may run in it.
  started = threading.Event()
  streams = [tf_iterator.numpy_batches(slow_dataset(started))]
  next(streams[0])
  started.wait()
  check = lock_util.GroupLock._another_group_active

  def collect(self, group):
    streams.clear()  # the stream ends here
    return check(self, group)

  monkeypatch.setattr(lock_util.GroupLock, "_another_group_active", collect)

  @tf.function(autograph=False)
  def add(x):
    return x + 1

  assert add(tf.zeros(3)).numpy().tolist() == [1.0] * 3
  assert not streams


def test_a_closed_stream_ends_its_threads():
  started = threading.Event()
  stream = tf_iterator.numpy_batches(slow_dataset(started))
  next(stream)
  stream.close()
  tf_iterator._current.wait()
  started.clear()
  # Another stream runs; nothing of the first one does.
  other = tf_iterator.numpy_batches(slow_dataset(threading.Event()))
  for _ in range(20):
    next(other)
  other.close()
  assert not started.is_set()
