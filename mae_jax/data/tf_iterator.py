"""Iteration over tf.data datasets whose threads run Python.

Destroying a tf.data iterator joins its threads while it holds the GIL. A thread
that needs the GIL, to call Pillow, then deadlocks. So the iterator is first
given an empty dataset, which ends the threads' work without holding the GIL.

The garbage collector may close a stream anywhere, also inside TensorFlow's own
locks. So a stream that ends calls no TensorFlow: it leaves its iterator to a
thread.
"""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from mae_jax.data.tf_setup import tf

_open: weakref.WeakSet[Generator] = weakref.WeakSet()


def close_at_exit(stream: Generator) -> Generator:
  """Registers a stream to be closed before the interpreter shuts down."""
  _open.add(stream)
  return stream


def numpy_batches(dataset: tf.data.Dataset) -> Iterator[dict[str, np.ndarray]]:
  """Yields the elements of a dataset of dicts, read-only and without a copy."""
  names = sorted(dataset.element_spec)
  specs = [dataset.element_spec[name] for name in names]
  form = {
    "output_types": [spec.dtype for spec in specs],
    "output_shapes": [spec.shape for spec in specs],
  }
  empty = tf.data.experimental.to_variant(_empty(dataset))
  iterator = tf.raw_ops.AnonymousIteratorV3(**form)
  variant = tf.data.experimental.to_variant(dataset)
  tf.raw_ops.MakeIterator(dataset=variant, iterator=iterator)
  closer = _closer()
  try:
    while True:
      values = tf.raw_ops.IteratorGetNext(iterator=iterator, **form)
      yield {
        name: _to_numpy(value)
        for name, value in zip(names, values, strict=True)
      }
  except tf.errors.OutOfRangeError:
    pass
  finally:
    closer.close(iterator, empty)


class _Closer:
  """A thread that ends the work of iterators."""

  def __init__(self) -> None:
    self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def close(self, iterator: tf.Tensor, empty: tf.Tensor) -> None:
    """Hands an iterator and an empty dataset over; safe in any callback."""
    self._queue.put((iterator, empty))

  def is_alive(self) -> bool:
    """Checks whether the thread runs; after a fork it does not."""
    return self._thread.is_alive()

  def wait(self) -> None:
    """Waits until all iterators that were handed over have ended."""
    done = threading.Event()
    self._queue.put(done)
    done.wait()

  def _run(self) -> None:
    while True:
      item = self._queue.get()
      if isinstance(item, threading.Event):
        item.set()
        continue
      iterator, empty = item
      tf.raw_ops.MakeIterator(dataset=empty, iterator=iterator)
      del item, iterator, empty  # while the queue is empty


_current: _Closer | None = None
_starting = threading.Lock()


def _closer() -> _Closer:
  """Returns this process's closer."""
  global _current
  with _starting:
    if _current is None or not _current.is_alive():
      _current = _Closer()
    return _current


def _empty(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Returns a dataset of the same type without elements.

  `take(0)` would build the functions of the whole dataset once more.
  """
  return tf.data.Dataset.from_tensor_slices(
    {
      name: tf.zeros([0, *(size or 0 for size in spec.shape)], spec.dtype)
      for name, spec in dataset.element_spec.items()
    }
  )


def _to_numpy(value: Any) -> np.ndarray:
  if value.dtype == tf.string:
    return value.numpy()
  array = np.asarray(memoryview(value))
  array.setflags(write=False)
  return array


@atexit.register
def _close_all() -> None:
  for stream in list(_open):
    stream.close()
  if _current is not None and _current.is_alive():
    _current.wait()
