"""Which example stands where, and its random numbers: functions of the seed."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from mae_jax.utils import rng


def uniform(
  seed: int,
  stream: str,
  step: tf.Tensor,
  *,
  count: int,
  batch_size: int,
  rows: np.ndarray,
) -> tf.Tensor:
  """Uniform [len(rows), count] as a function of seed, stream, step and row.

  Those of the whole batch are drawn, in one call: far cheaper than a call for
  each row, and no process need know which rows another one has.
  """
  key = tf.constant([seed, rng.stream_id(f"data/{stream}")], tf.int64)
  whole = tf.random.stateless_uniform(
    [batch_size, count], tf.random.fold_in(key, step)
  )
  return tf.gather(whole, rows)


def shuffled_index(position: tf.Tensor, total: int, seed: int) -> tf.Tensor:
  """Which example stands at each position [n]; a permutation in each epoch."""
  epoch = position // total
  first = tf.reduce_min(epoch)
  key = tf.constant([seed, rng.stream_id("data/order")], tf.int64)

  def keys(number: tf.Tensor) -> tf.Tensor:
    return tf.random.stateless_uniform(
      [3],
      tf.random.fold_in(key, number),
      minval=None,
      maxval=None,
      dtype=tf.int64,
    )

  # A small index space sees only a key's low bits, and the default four rounds
  # leave neighboring keys correlated: hence hashed keys, and sixteen rounds.
  epochs = tf.range(first, tf.reduce_max(epoch) + 1)
  table = tf.map_fn(keys, epochs, fn_output_signature=tf.int64)
  return tf.raw_ops.RandomIndexShuffle(
    index=position % total,
    seed=tf.gather(table, epoch - first),
    max_index=tf.fill(tf.shape(position), tf.constant(total - 1, tf.int64)),
    rounds=16,
  )
