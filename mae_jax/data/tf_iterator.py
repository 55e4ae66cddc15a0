"""Iteration over tf.data datasets whose threads run Python.

Destroying a tf.data iterator joins its threads while it holds the GIL. A thread
that needs the GIL, to call Pillow, then deadlocks. So the iterator is first
given an empty dataset, which ends the threads' work without holding the GIL.
"""

from __future__ import annotations

import atexit
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
    _set_dataset(iterator, _empty(dataset))


def _set_dataset(iterator: tf.Tensor, dataset: tf.data.Dataset) -> None:
  variant = tf.data.experimental.to_variant(dataset)
  tf.raw_ops.MakeIterator(dataset=variant, iterator=iterator)


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
