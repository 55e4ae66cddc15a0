"""Few-shot subsets: a fixed number of labeled images per class of a source."""

import contextlib
import heapq
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from mae_jax.data import pipeline, record_shards, tf_iterator
from mae_jax.data.sources import Files, Indexed, Records, Source
from mae_jax.data.sources.base import Record
from mae_jax.data.tf_setup import tf
from mae_jax.utils import console, rng
from mae_jax.utils.errors import ConfigError


def choose_per_class(
  labels: np.ndarray, shots: int, random: np.random.Generator
) -> np.ndarray:
  """Samples `shots` examples per class, or all of a smaller class.

  Args:
    labels: [N] class numbers.
    shots: examples per class; 0 for all.
    random: generator that samples them.

  Returns:
    Sorted indices into `labels`.
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


Subset = tuple[int, int]  # (images per class, seed)


def limit_per_class(source: Source, shots: int, seed: int) -> Source:
  """Limits a source to `shots` examples per class, or 0 for all, by a seed.

  Raises:
    ConfigError: if there are no labels, or a record file is damaged.
  """
  return few_shot_subsets(source, [(shots, seed)])[0]


def few_shot_subsets(source: Source, choices: Sequence[Subset]) -> list[Source]:
  """Applies `limit_per_class` for several (shots, seed) pairs.

  Record files are read once for all subsets, without decoding images. The
  encoded images of the subsets stay in memory.
  """
  wanted = dict.fromkeys(choice for choice in choices if choice[0])
  if wanted and not source.class_names:
    raise ConfigError(
      f"data.shots={next(iter(wanted))[0]} limits the images per class, but "
      "these images have no labels: set --config.data.shots=0"
    )
  found: dict[Subset, Indexed] = {}
  if isinstance(source, Indexed):
    labels = read_labels(source) if wanted else np.zeros(0)
    for choice in wanted:
      found[choice] = source.take(
        choose_per_class(labels, choice[0], _subset_rng(choice))
      )
  elif wanted:
    found = _subsets_of_records(source, list(wanted))
  return [found.get(choice, source) for choice in choices]


def labels_present(source: Source) -> np.ndarray:
  """Returns the sorted labels that occur in a source.

  Record files are read only until every class has been seen, which is usually a
  small part of a large data set.
  """
  if isinstance(source, Indexed):
    return np.unique(read_labels(source))
  seen: set[int] = set()
  with contextlib.closing(_read_fields(source, "label")) as labels:
    for (label,) in labels:
      seen.add(int(label))
      if len(seen) == len(source.class_names or ()):
        break
  return np.array(sorted(seen), np.int64)


def class_counts(source: Source) -> tuple[int, ...]:
  """Counts the images of each class; record files are read whole for it."""
  labels = read_labels(source)
  counts = np.bincount(
    labels[labels >= 0], minlength=len(source.class_names or ())
  )
  return tuple(counts.tolist())


def read_labels(source: Source) -> np.ndarray:
  """Returns all labels [N], read from the files if they are not known."""
  if isinstance(source, Indexed) and source.labels is not None:
    return source.labels
  return np.array([label for (label,) in _read_fields(source, "label")])


def _subset_rng(choice: Subset) -> np.random.Generator:
  return np.random.default_rng([choice[1], rng.stream_id("data/shots")])


def _subsets_of_records(
  source: Records, choices: Sequence[Subset]
) -> dict[Subset, Indexed]:
  # Chooses the first `shots` members of each class in a random order of all
  # records, with a heap per class so that one pass is enough.
  total = source.num_examples
  orders = [_subset_rng(choice).permutation(total) for choice in choices]
  chosen: list[dict[int, list[tuple[int, int, bytes]]]] = [{} for _ in choices]
  records = _read_fields(source, "id", "label", "image")
  for number, record in zip(range(total), records, strict=True):
    id_, label, image = int(record[0]), int(record[1]), bytes(record[2])
    for (shots, _), order, heaps in zip(choices, orders, chosen, strict=True):
      heap = heaps.setdefault(label, [])
      # A heap drops its smallest element; negated, that is the last in order.
      (heapq.heappushpop if len(heap) == shots else heapq.heappush)(
        heap, (-int(order[number]), id_, image)
      )
  return {
    choice: _memory_source(
      source,
      sorted(
        (id_, label, image)
        for label, heap in heaps.items()
        for _, id_, image in heap
      ),
    )
    for choice, heaps in zip(choices, chosen, strict=True)
  }


def _memory_source(
  source: Records, found: Sequence[tuple[int, int, bytes]]
) -> Files:
  """Makes a source of (id, label, image file) triples."""
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

  return Files(
    num_examples=len(found),
    class_names=source.class_names,
    load=load,
    identity=source.identity,
    name=source.name,
    labels=np.asarray(classes),
  )


def _read_fields(source: Source, *names: str) -> Generator[tuple[Any, ...]]:
  """Yields the named fields ("id", "label", "image") of every record."""

  def parse(*element: tf.Tensor) -> Record:
    record = source.load(*element)
    return {name: record[name] for name in names}

  if isinstance(source, Records):
    elements = record_shards.all_records(source)
  else:
    elements = tf.data.Dataset.range(source.num_examples)
  parsed = elements.map(
    tf.autograph.experimental.do_not_convert(parse),
    num_parallel_calls=tf.data.AUTOTUNE,
    deterministic=True,
  )
  records = tf_iterator.numpy_batches(parsed.prefetch(tf.data.AUTOTUNE))
  progress = console.progress_bar(
    source.num_examples, desc="reading labels", leave=False, delay=2
  )
  try:
    with progress:
      for record in records:
        yield tuple(record[name] for name in names)
        progress.update()
  except tf.errors.OpError as error:
    raise ConfigError(str(pipeline.read_error(source, error))) from error
