"""Batches out of a data set that runs Python in its threads.

An iterator that goes out of scope waits for what its threads are at, and holds
Python's lock meanwhile; if one of them needs the lock, to ask Pillow, neither
ever ends. So the work is called off first, by an operation, which lets go of
the lock.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

_open: weakref.WeakSet[Generator] = weakref.WeakSet()


def close_at_exit(stream: Generator) -> Generator:
  """The same, but closed while the interpreter is still whole."""
  _open.add(stream)
  return stream


def numpy_batches(dataset: tf.data.Dataset) -> Iterator[dict[str, np.ndarray]]:
  """The elements of a data set of dicts, read-only and without a copy."""
  names = sorted(dataset.element_spec)
  specs = [dataset.element_spec[name] for name in names]
  form = {
    "output_types": [spec.dtype for spec in specs],
    "output_shapes": [spec.shape for spec in specs],
  }
  iterator = tf.raw_ops.AnonymousIteratorV3(**form)
  _set_dataset(iterator, dataset)
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
    _set_dataset(iterator, dataset.take(0))


def _set_dataset(iterator: tf.Tensor, dataset: tf.data.Dataset) -> None:
  variant = tf.data.experimental.to_variant(dataset)
  tf.raw_ops.MakeIterator(dataset=variant, iterator=iterator)


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
