"""Order of examples and their random numbers, as functions of the seed."""

import numpy as np

from mae_jax.data.tf_setup import tf
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
  """Samples uniform numbers as a function of seed, stream, step and row.

  One call samples the numbers of the whole batch, which is far cheaper than one
  call per row.

  Args:
    seed: seed of the run.
    stream: name of the random stream.
    step: int64 scalar.
    count: numbers per row.
    batch_size: B, over all processes.
    rows: the rows of this process.

  Returns:
    float32 [len(rows), count] in [0, 1).
  """
  key = tf.constant([seed, rng.stream_id(f"data/{stream}")], tf.int64)
  whole = tf.random.stateless_uniform(
    [batch_size, count], tf.random.fold_in(key, step)
  )
  return tf.gather(whole, rows)


def shuffled_index(position: tf.Tensor, total: int, seed: int) -> tf.Tensor:
  """Returns the example at each position; each epoch is a permutation.

  Args:
    position: int64 [n], counted from the start of training.
    total: N, the number of examples.
    seed: seed of the order.

  Returns:
    int64 [n] in 0..N-1.
  """
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

  # For a small N the shuffle uses only the low bits of a key, and four rounds,
  # the default, leave neighboring keys correlated. So keys are hashed, and
  # there are sixteen rounds.
  epochs = tf.range(first, tf.reduce_max(epoch) + 1)
  table = tf.map_fn(keys, epochs, fn_output_signature=tf.int64)
  return tf.raw_ops.RandomIndexShuffle(
    index=position % total,
    seed=tf.gather(table, epoch - first),
    max_index=tf.fill(tf.shape(position), tf.constant(total - 1, tf.int64)),
    rounds=16,
  )
