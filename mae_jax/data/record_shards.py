"""Shards of TFRecord files, each of which fills fixed rows of every batch.

The records are divided into n shards, each an endless stream in its own order.
Shard i fills rows i * B / n .. (i + 1) * B / n - 1 of every batch. A process
reads only the shards of its rows, and a batch is still the same on any number
of processes.

A shard that begins within a file must read the file from its start. With many
more shards than files, fewer shards are faster.
"""

import dataclasses
from collections.abc import Callable
from typing import Self

import numpy as np

from mae_jax.config import DataConfig
from mae_jax.data.sources import base
from mae_jax.data.tf_setup import tf
from mae_jax.utils import rng
from mae_jax.utils.errors import ConfigError

INT64_MAX = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class _PieceTable:
  """The pieces of all shards in order, as tensors."""

  path: tf.Tensor  # [pieces]
  first_id: tf.Tensor
  skip: tf.Tensor
  take: tf.Tensor
  stride: tf.Tensor
  first: tf.Tensor  # [num_shards], index of the shard's first piece
  count: tf.Tensor  # [num_shards], number of its pieces
  records: tf.Tensor  # [num_shards], number of its records

  @classmethod
  def of(cls, source: base.Records, num_shards: int) -> Self:
    parts = source.split(num_shards)
    pieces = [piece for part in parts for piece in part]
    counts = np.array([len(part) for part in parts], np.int64)
    records = [sum(piece.take for piece in part) for part in parts]
    return cls(
      path=tf.constant([piece.path for piece in pieces]),
      first_id=tf.constant(source.first_ids(pieces), tf.int64),
      skip=tf.constant([piece.skip for piece in pieces], tf.int64),
      take=tf.constant([piece.take for piece in pieces], tf.int64),
      stride=tf.constant([piece.stride for piece in pieces], tf.int64),
      first=tf.constant(np.cumsum(counts) - counts),
      count=tf.constant(counts),
      records=tf.constant(records, tf.int64),
    )

  def read(self, piece: tf.Tensor) -> tf.data.Dataset:
    """Reads the ids and serialized examples of one piece, in order."""
    records = tf.data.TFRecordDataset(self.path[piece], buffer_size=1 << 20)
    records = records.skip(self.skip[piece])
    records = records.shard(self.stride[piece], 0)
    records = records.take(self.take[piece])
    # A file truncated between two records would otherwise just end early.
    whole = tf.data.experimental.assert_cardinality(self.take[piece])
    ids = tf.data.Dataset.range(
      self.first_id[piece], INT64_MAX, self.stride[piece]
    )
    return tf.data.Dataset.zip(ids, records.apply(whole))


def num_record_shards(wanted: int, batch_size: int, num_examples: int) -> int:
  """Returns the largest shard count that divides B, without empty shards."""
  most = max(1, min(wanted, batch_size, num_examples))
  return next(n for n in range(most, 0, -1) if batch_size % n == 0)


def train_stream(
  source: base.Records,
  data: DataConfig,
  *,
  seed: int,
  rows: np.ndarray,
  start_step: int,
) -> tf.data.Dataset:
  """Returns an endless dataset of (id, serialized example), row by row.

  Each epoch of a shard reads its pieces in a random order, through a shuffle
  buffer, and contains each record once.

  Args:
    source: the records.
    data: `batch_size`, `record_shards`, and `shuffle_buffer` for all shards.
    seed: seed of the order.
    rows: increasing row numbers that form whole shards.
    start_step: number of batches to skip. Whole epochs of a shard are skipped
      for free; records of the current epoch are read but not decoded.

  Raises:
    ConfigError: if the rows split a shard.
  """
  num_shards = num_record_shards(
    data.record_shards, data.batch_size, source.num_examples
  )
  share = data.batch_size // num_shards
  mine = np.unique(rows // share)
  if len(rows) != len(mine) * share:
    raise ConfigError(
      f"data.record_shards={data.record_shards} makes {num_shards} shards of "
      f"{share} rows each, with data.batch_size={data.batch_size} and "
      f"{source.num_examples} examples. This process reads {len(rows)} rows "
      f"(from {rows[0]}), which would split a shard: set data.record_shards to "
      "the number of devices or a multiple of it that divides data.batch_size "
      "and is at most the number of examples"
    )
  table = _PieceTable.of(source, num_shards)
  buffer = max(1, data.shuffle_buffer // num_shards)
  consumed = start_step * share

  def epoch_stream(shard: tf.Tensor, epoch: tf.Tensor) -> tf.data.Dataset:
    stream = tf.constant([seed, rng.stream_id("lanes")], tf.int64)
    stream = tf.random.fold_in(tf.random.fold_in(stream, shard), epoch)
    draws = tf.random.stateless_uniform(
      [4], stream, minval=None, maxval=None, dtype=tf.int64
    )
    order = tf.raw_ops.RandomIndexShuffle(
      index=tf.range(table.count[shard]),
      seed=draws[:3],
      max_index=table.count[shard] - 1,
      rounds=16,
    )
    pieces = tf.data.Dataset.from_tensor_slices(table.first[shard] + order)
    return pieces.flat_map(table.read).shuffle(
      buffer, seed=draws[3], reshuffle_each_iteration=False
    )

  def shard_stream(shard: tf.Tensor) -> tf.data.Dataset:
    epochs = tf.data.Dataset.range(consumed // table.records[shard], INT64_MAX)
    stream = epochs.flat_map(lambda epoch: epoch_stream(shard, epoch))
    return stream.skip(consumed % table.records[shard])

  return _interleave(mine, share, shard_stream)


def eval_stream(
  source: base.Records,
  *,
  record_shards: int,
  batch_size: int,
  rows: np.ndarray,
) -> tuple[int, tf.data.Dataset]:
  """Returns one pass over the records, in order within each shard.

  Args:
    source: the records.
    record_shards: the largest number of shards; here a shard may be empty.
    batch_size: B.
    rows: increasing row numbers; a shard with any of them is read whole.

  Returns:
    The number of batches, which does not depend on the rows, and a dataset of
    the rows' elements in order: (id, serialized example, True), or
    (0, b"", False) for padding.
  """
  num_shards = num_record_shards(record_shards, batch_size, batch_size)
  share = batch_size // num_shards
  mine = np.unique(rows // share)
  table = _PieceTable.of(source, num_shards)
  batches = -(-int(np.max(table.records)) // share)
  padding = tf.data.Dataset.from_tensors(
    (tf.constant(0, tf.int64), b"", False)
  ).repeat()

  def shard_stream(shard: tf.Tensor) -> tf.data.Dataset:
    pieces = tf.data.Dataset.range(
      table.first[shard], table.first[shard] + table.count[shard]
    )
    records = pieces.flat_map(table.read).map(lambda *record: (*record, True))
    return records.concatenate(padding).take(batches * share)

  stream = _interleave(mine, share, shard_stream)
  read = (mine[:, None] * share + np.arange(share)).reshape(-1)
  wanted = tf.data.Dataset.from_tensor_slices(np.isin(read, rows)).repeat()
  stream = tf.data.Dataset.zip(wanted, stream)
  stream = stream.filter(lambda keep, _: keep)
  return batches, stream.map(lambda _, element: element)


def all_records(source: base.Records) -> tf.data.Dataset:
  """Returns a dataset of (id, serialized example) of all records, in order."""
  _, elements = eval_stream(
    source, record_shards=1, batch_size=1, rows=np.arange(1)
  )
  return elements.filter(lambda id_, serialized, real: real).map(
    lambda id_, serialized, real: (id_, serialized)
  )


def find_damaged_file(source: base.Records) -> str | None:
  """Reads all files, and returns the first one with too few records, if any."""
  wanted = dict.fromkeys(source.files, 0)
  for piece in source.pieces:
    last = piece.skip + (piece.take - 1) * piece.stride
    wanted[piece.path] = max(wanted[piece.path], last + 1)

  def count(path: tf.Tensor) -> tf.Tensor:
    def records(path: tf.Tensor) -> tf.Tensor:
      zero = tf.constant(0, tf.int64)
      records = tf.data.TFRecordDataset(path, buffer_size=1 << 20)
      return records.reduce(zero, lambda number, _: number + 1)

    # Counts -1 for a file that fails, as `decode.map_with_fallback` does.
    found = tf.data.Dataset.from_tensors(path).map(records)
    found = found.ignore_errors(log_warning=False)
    failed = tf.data.Dataset.from_tensors(tf.constant(-1, tf.int64))
    return found.concatenate(failed).take(1).get_single_element()

  paths = tf.data.Dataset.from_tensor_slices(list(wanted))
  counts = paths.map(count, num_parallel_calls=tf.data.AUTOTUNE)
  for path, found in zip(wanted, counts.as_numpy_iterator(), strict=True):
    if found < wanted[path]:
      return path
  return None


def _interleave(
  mine: np.ndarray,
  share: int,
  shard_stream: Callable[[tf.Tensor], tf.data.Dataset],
) -> tf.data.Dataset:
  return tf.data.Dataset.from_tensor_slices(mine).interleave(
    # Nothing here needs AutoGraph, and its conversion takes seconds.
    tf.autograph.experimental.do_not_convert(shard_stream),
    cycle_length=len(mine),
    block_length=share,
    num_parallel_calls=tf.data.AUTOTUNE,
    deterministic=True,
  )
