"""A few labelled images of each class, out of any source."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
import tqdm

from mae_jax import config, console, rng
from mae_jax.data import lanes, pipeline, stream
from mae_jax.data.sources import Indexed, Records, Source
from mae_jax.data.sources.base import Record


def choose(
  labels: np.ndarray, shots: int, random: np.random.Generator
) -> np.ndarray:
  """Positions of `shots` examples a class, of all where there are no more.

  Args:
    labels: [N] class numbers.
    shots: how many; 0 for all.
    random: decides which.

  Returns:
    Sorted positions.
  """
  if not shots:
    return np.arange(len(labels))
  order = random.permutation(len(labels))
  grouped = order[np.argsort(labels[order], kind="stable")]
  _, first, count = np.unique(
    labels[grouped], return_index=True, return_counts=True
  )
  place = np.arange(len(labels)) - np.repeat(first, count)  # in its class
  return np.sort(grouped[place < shots])


def few(source: Source, shots: int, seed: int) -> Source:
  """A source of `shots` examples a class, a function of the seed.

  Of record files everything is read once, without decoding an image, and the
  files of the images chosen are kept in memory.

  Args:
    source: of labelled images.
    shots: how many; 0 for all.
    seed: decides which.

  Raises:
    ConfigError: if there are no labels, or a file of records is damaged.
  """
  if not shots:
    return source
  if not source.class_names:
    raise config.ConfigError(
      f"data.shots={shots} takes so many images a class, and these have no "
      "labels: set --config.data.shots=0"
    )
  random = np.random.default_rng([seed, rng.stream_id("data/shots")])
  if isinstance(source, Indexed):
    assert source.labels is not None
    return _of_indexed(source, choose(source.labels, shots, random))
  return _of_records(source, shots, random)


def labels(source: Source) -> np.ndarray:
  """The label of each example, [N]; of record files in the order of files."""
  if isinstance(source, Indexed):
    assert source.labels is not None
    return source.labels
  return np.array([label for _, label, _ in _read(source)], np.int64)


def _of_indexed(source: Indexed, chosen: np.ndarray) -> Indexed:
  assert source.labels is not None
  load, table = source.load, tf.constant(chosen, tf.int64)
  return dataclasses.replace(
    source,
    num_examples=len(chosen),
    labels=source.labels[chosen],
    load=lambda index: load(tf.gather(table, index)),
  )


def _of_records(
  source: Records, shots: int, random: np.random.Generator
) -> Indexed:
  # The members of a class that come first in a random order of all.
  order = random.permutation(source.num_examples)
  kept: dict[int, list[tuple[int, int, bytes]]] = {}
  for place, (id_, label, image) in zip(order, _read(source), strict=True):
    heap = kept.setdefault(label, [])
    # Of a heap the smallest goes, and that is to be the last in the order.
    (heapq.heappushpop if len(heap) == shots else heapq.heappush)(
      heap, (-int(place), id_, image)
    )
  found = sorted(
    (id_, label, image)
    for label, heap in kept.items()
    for _, id_, image in heap
  )
  ids, classes, images = zip(*found, strict=True)
  id_table = tf.constant(ids, tf.int64)
  label_table = tf.constant(classes, tf.int64)
  image_table = tf.constant(images)

  def load(index: tf.Tensor) -> Record:
    return {
      "image": image_table[index],
      "label": label_table[index],
      "id": id_table[index],
    }

  return Indexed(
    num_examples=len(found),
    class_names=source.class_names,
    load=load,
    identity=source.identity,
    name=source.name,
    labels=np.asarray(classes),
  )


def _read(source: Records) -> Iterator[tuple[int, int, bytes]]:
  """Id, label and image file of each record, in the order of the files."""

  def parse(id_: tf.Tensor, serialised: tf.Tensor, _: tf.Tensor) -> Record:
    return source.parse(serialised) | {"id": id_}

  _, elements = lanes.eval_stream(
    source, lanes=1, batch_size=1, rows=np.arange(1)
  )
  parsed = elements.map(
    tf.autograph.experimental.do_not_convert(parse),
    num_parallel_calls=tf.data.AUTOTUNE,
    deterministic=True,
  )
  shown = tqdm.tqdm(
    stream.numpy_batches(parsed.prefetch(tf.data.AUTOTUNE)),
    total=source.num_examples,
    desc="reading labels",
    unit="images",
    file=console.STDERR,
    leave=False,
    delay=2,
  )
  try:
    for record in shown:
      yield int(record["id"]), int(record["label"]), bytes(record["image"])
  except tf.errors.OpError as error:
    raise config.ConfigError(str(pipeline.damage(source, error))) from error
