"""A source as a stream of batches, the same on any number of processes.

Global batch s has the rows 0..B-1, and what is in a row, in which crop, follows
from (seed, s, row). A process asks for its rows and computes those. So a
resumed stream starts at any step, and nothing about it is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from mae_jax import config
from mae_jax.data import lanes, order, preprocess
from mae_jax.data.sources import Indexed, Records, Source

Batch = dict[str, np.ndarray]
_Tensors = dict[str, tf.Tensor]


def train_batches(
  source: Source,
  data: config.Data,
  *,
  seed: int,
  rows: np.ndarray,
  start_step: int = 0,
) -> Iterator[Batch]:
  """Endless augmented batches.

  The stream runs on across epochs and drops nothing. Row r of step s is at
  position p = s * B + r; an indexed source gives epoch p // N its own
  permutation of all N, record files are shuffled as `lanes` says.

  Args:
    source: from `open_source`.
    data: `batch_size` is B; crop, flip and shuffle settings.
    seed: of the order and of the augmentation.
    rows: increasing numbers in 0..B-1, the rows this process needs. Of record
      files they must be whole lanes.
    start_step: the first step; the stream goes on as if it had begun at 0.

  Returns:
    Iterator over {"image": uint8 [len(rows), H, W, C], "label": int32
    [len(rows)], -1 for none}.

  Raises:
    ConfigError: if the settings contradict the source or the rows cut a lane.
    ValueError: if the rows are not increasing numbers in 0..B-1.
  """
  rows = _check(source, data, rows, data.batch_size)
  steps = tf.data.Dataset.range(start_step, lanes.INT64_MAX)

  def plan(step: tf.Tensor) -> _Tensors:
    """What this process's rows hold: which example, and its uniform draws."""

    def draws(stream: str, count: int) -> tf.Tensor:
      return order.draws(
        seed, stream, step, count=count, batch_size=data.batch_size, rows=rows
      )

    result = {
      "crop": draws("crop", preprocess.CROP_DRAWS),
      "flip": draws("flip", 1)[:, 0],
    }
    if isinstance(source, Indexed):
      position = step * data.batch_size + rows
      result["index"] = order.shuffled(position, source.num_examples, seed)
    return result

  if isinstance(source, Indexed) and source.image_shape:

    def whole(step: tf.Tensor) -> _Tensors:
      plans = plan(step)
      record = source.load(plans["index"])
      return _augment_arrays(record, plans, data)

    return _iterate(_map(steps, whole))

  def indexed(plans: _Tensors) -> _Tensors:
    assert isinstance(source, Indexed)
    record = source.load(plans["index"])
    return _augment(record, plans, data)

  def recorded(plans: _Tensors, serialised: tf.Tensor) -> _Tensors:
    assert isinstance(source, Records)
    return _augment(source.parse(serialised), plans, data)

  plans = _map(steps, plan).unbatch()
  if isinstance(source, Indexed):
    return _iterate(_map(plans, indexed).batch(len(rows)))
  stream = lanes.train_stream(
    source, data, seed=seed, rows=rows, start_step=start_step
  )
  pairs = tf.data.Dataset.zip(plans, stream)
  return _iterate(_map(pairs, recorded).batch(len(rows)))


def eval_batches(
  source: Source,
  data: config.Data,
  *,
  batch_size: int,
  rows: np.ndarray,
  limit: int = 0,
) -> Iterator[Batch]:
  """One pass in a fixed order, without augmentation; nothing is dropped.

  Args:
    source: from `open_source`, of either split.
    data: `image_size`, `eval_crop` and `channels`.
    batch_size: B, over all processes.
    rows: increasing numbers in 0..B-1, the rows this process needs.
    limit: at most so many examples, the same ones each time and from all over
      the source; 0 for all.

  Returns:
    Iterator over {"image": uint8 [len(rows), H, W, C], "label": int32
    [len(rows)], "mask": float32 [len(rows)], 1 = an example, 0 = padding, whose
    image and label are 0}. Every process gets the same number of batches. The
    order depends on B, and not on the rows.

  Raises:
    ConfigError: if the settings contradict the source.
    ValueError: if the rows are not increasing numbers in 0..B-1.
  """
  rows = _check(source, data, rows, batch_size)
  source = source.subset(limit)
  total = source.num_examples

  if isinstance(source, Records):
    records = source
    num, stream = lanes.eval_stream(
      source, lanes=data.lanes, batch_size=batch_size, rows=rows
    )

    def recorded(serialised: tf.Tensor, real: tf.Tensor) -> _Tensors:
      return _or_zeros(real, lambda: records.parse(serialised), data)

    return _iterate(_map(stream, recorded).batch(len(rows)).take(num))

  load = source.load
  steps = tf.data.Dataset.range(-(-total // batch_size))
  positions = steps.map(lambda step: step * batch_size + rows)
  if source.image_shape:

    def whole(position: tf.Tensor) -> _Tensors:
      record = load(tf.minimum(position, total - 1))
      image = preprocess.center_crop_arrays(
        record["image"], size=data.image_size, keep=data.eval_crop
      )
      real = position < total
      return {
        "image": tf.where(real[:, None, None, None], image, 0),
        "label": tf.cast(tf.where(real, record["label"], 0), tf.int32),
        "mask": tf.cast(real, tf.float32),
      }

    return _iterate(_map(positions, whole))

  def indexed(position: tf.Tensor) -> _Tensors:
    return _or_zeros(position < total, lambda: load(position), data)

  return _iterate(_map(positions.unbatch(), indexed).batch(len(rows)))


def _check(
  source: Source, data: config.Data, rows: np.ndarray, batch_size: int
) -> np.ndarray:
  rows = np.asarray(rows, np.int64)
  if (
    rows.ndim != 1
    or not len(rows)
    or (np.diff(rows) <= 0).any()
    or rows[0] < 0
    or rows[-1] >= batch_size
  ):
    raise ValueError(
      f"rows={rows} must be increasing numbers in 0..{batch_size - 1}, at "
      "least one: give each process a part of the batch"
    )
  _check_range("crop_scale", data.crop_scale, 1.0)
  _check_range("crop_ratio", data.crop_ratio, np.inf)
  if not 0 < data.eval_crop <= 1:
    raise config.ConfigError(
      f"data.eval_crop={data.eval_crop} must be above 0 and at most 1, which "
      "keeps the whole image"
    )
  if isinstance(source, Indexed) and source.image_shape:
    channels = source.image_shape[-1]
    if channels != data.channels:
      raise config.ConfigError(
        f"data.channels={data.channels}, but the arrays of data.source="
        f"{data.source!r} have {channels}: set "
        f"--config.data.channels={channels}"
      )
  return rows


def _check_range(name: str, value: tuple[float, float], most: float) -> None:
  if not 0 < value[0] <= value[1] <= most:
    upper = f" and the larger at most {most:g}" if np.isfinite(most) else ""
    raise config.ConfigError(
      f"data.{name}={value} must be two numbers above 0, the smaller one first"
      f"{upper}"
    )


def _augment(record: _Tensors, plan: _Tensors, data: config.Data) -> _Tensors:
  image = preprocess.random_resized_crop(
    record["image"],
    plan["crop"],
    size=data.image_size,
    scale=data.crop_scale,
    ratio=data.crop_ratio,
    channels=data.channels,
  )
  return _finish(image, record["label"], plan, data)


def _augment_arrays(
  record: _Tensors, plans: _Tensors, data: config.Data
) -> _Tensors:
  images = preprocess.random_resized_crop_arrays(
    record["image"],
    plans["crop"],
    size=data.image_size,
    scale=data.crop_scale,
    ratio=data.crop_ratio,
  )
  return _finish(images, record["label"], plans, data)


def _finish(
  images: tf.Tensor, labels: tf.Tensor, plans: _Tensors, data: config.Data
) -> _Tensors:
  if data.flip:
    images = preprocess.random_flip(images, plans["flip"])
  return {"image": images, "label": tf.cast(labels, tf.int32)}


def _or_zeros(
  real: tf.Tensor, load: Callable[[], _Tensors], data: config.Data
) -> _Tensors:
  """One example for evaluation, or padding, for which nothing is read."""

  def example() -> tuple[tf.Tensor, tf.Tensor]:
    record = load()
    image = preprocess.center_crop(
      record["image"],
      size=data.image_size,
      keep=data.eval_crop,
      channels=data.channels,
    )
    return image, tf.cast(record["label"], tf.int32)

  shape = [*data.image_size, data.channels]
  image, label = tf.cond(
    real, example, lambda: (tf.zeros(shape, tf.uint8), tf.constant(0))
  )
  return {
    "image": tf.ensure_shape(image, shape),
    "label": label,
    "mask": tf.cast(real, tf.float32),
  }


def _map(
  dataset: tf.data.Dataset, function: Callable[..., _Tensors]
) -> tf.data.Dataset:
  return dataset.map(
    # Nothing here needs AutoGraph, whose conversion takes seconds.
    tf.autograph.experimental.do_not_convert(function),
    num_parallel_calls=tf.data.AUTOTUNE,
    deterministic=True,
  )


def _iterate(batches: tf.data.Dataset) -> Iterator[Batch]:
  return batches.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
