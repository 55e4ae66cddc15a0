"""The stream of batches of a source, equal on any number of processes.

Global batch s has the rows 0..B-1. The example in a row and its augmentation
are functions of (seed, s, row), so each process computes only its own rows. A
resumed stream starts at any step, and nothing about it is saved.
"""

import functools
import re
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np

from mae_jax.config import DataConfig
from mae_jax.data import (
  augment,
  decode,
  image_headers,
  preprocess,
  record_shards,
  sampling,
  tf_iterator,
)
from mae_jax.data.bad_images import BadImages
from mae_jax.data.sources import Arrays, Records, Source
from mae_jax.data.tf_setup import tf
from mae_jax.utils.errors import ConfigError, TrainingError

Batch = dict[str, np.ndarray]
_Tensors = dict[str, tf.Tensor]

_GROUP_SIZE = 8  # images with one error handler: larger groups are no faster


def train_batches(
  source: Source,
  data: DataConfig,
  *,
  seed: int,
  rows: np.ndarray,
  start_step: int = 0,
  unreadable: BadImages | None = None,
) -> Iterator[Batch]:
  """Returns an endless stream of augmented training batches.

  The stream crosses epochs without dropping an example. Row r of step s is at
  position p = s * B + r. `Files` and `Arrays` have a permutation of all N
  examples in epoch p // N; record files are shuffled as in `record_shards`.

  Args:
    source: from `open_source`.
    data: `batch_size` is B; crop, flip and shuffle settings.
    seed: seed of the order and of the augmentation.
    rows: increasing numbers in 0..B-1, the rows this process needs. For record
      files they must form whole shards.
    start_step: the first step; earlier steps are skipped, not computed.
    unreadable: collects the images that cannot be read.

  Returns:
    Iterator over {"image": [len(rows), H, W, C], "label": int32
    [len(rows)], -1 for none, "readable": bool [len(rows)]}. An unreadable image
    keeps its place and label; its pixels are `data.mean`. The iterator raises
    TrainingError if a record file is damaged.

  Raises:
    ConfigError: if the settings contradict the source, or the rows split a
      record shard.
    ValueError: if the rows are not increasing numbers in 0..B-1.
  """
  batches = _augmented_dataset(source, data, seed, rows, start_step)
  return _iterate(batches, source, unreadable)


def stacked_train_batches(
  streams: Sequence[tuple[Source, int]],
  data: DataConfig,
  *,
  rows: np.ndarray,
  start_step: int = 0,
  unreadable: BadImages | None = None,
) -> Iterator[Batch]:
  """Stacks several streams of `train_batches`, step by step.

  The streams share one tf.data iterator, because each further iterator would
  have its own buffers and threads. `streams` has S pairs of a source and a
  seed; the sources are subsets of one. The other arguments and the errors are
  those of `train_batches`, and arrays are [len(rows), S, ...].
  """
  batches = [
    _augmented_dataset(source, data, seed, rows, start_step)
    for source, seed in streams
  ]

  def stack(*batches: _Tensors) -> _Tensors:
    return {
      name: tf.stack([batch[name] for batch in batches], axis=1)
      for name in batches[0]
    }

  whole = _map(tf.data.Dataset.zip(*batches), stack)
  return _iterate(whole, streams[0][0], unreadable)


def _augmented_dataset(
  source: Source,
  data: DataConfig,
  seed: int,
  rows: np.ndarray,
  start_step: int,
) -> tf.data.Dataset:
  """Makes the dataset of `train_batches`, with "id" and "reason" of images."""
  rows = _check(source, data, rows, data.batch_size)
  steps = tf.data.Dataset.range(start_step, record_shards.INT64_MAX)

  def plan(step: tf.Tensor) -> _Tensors:
    """Samples the example and the augmentation of each row of a step."""

    def draws(stream: str, count: int) -> tf.Tensor:
      return sampling.uniform(
        seed, stream, step, count=count, batch_size=data.batch_size, rows=rows
      )

    result = {
      "crop": draws("crop", preprocess.CROP_DRAWS),
      "flip": draws("flip", 1)[:, 0],
    }
    if data.color_jitter:
      result["color_jitter"] = draws("color_jitter", augment.COLOR_JITTER_DRAWS)
    if data.randaugment:
      result["randaugment"] = draws("randaugment", augment.RAND_AUGMENT_DRAWS)
    if not isinstance(source, Records):
      position = step * data.batch_size + rows
      index = sampling.shuffled_index(position, source.num_examples, seed)
      result["index"] = tf.ensure_shape(index, rows.shape)
    return result

  if isinstance(source, Arrays):
    load_batch = source.load

    def whole_batch(step: tf.Tensor) -> _Tensors:
      plans = plan(step)
      return _augment_arrays(load_batch(plans["index"]), plans, data)

    return _map(steps, whole_batch)

  group = max(k for k in range(1, _GROUP_SIZE + 1) if len(rows) % k == 0)
  num_groups = len(rows) // group

  def split(step: tf.Tensor) -> _Tensors:
    return {
      name: tf.reshape(value, [num_groups, group, *value.shape[1:]])
      for name, value in plan(step).items()
    }

  def join(batch: _Tensors) -> _Tensors:
    return {
      name: tf.reshape(value, [len(rows), *value.shape[2:]])
      for name, value in batch.items()
    }

  plans = _map(steps, split).unbatch()
  if isinstance(source, Records):
    load_record = source.load
    records = record_shards.train_stream(
      source, data, seed=seed, rows=rows, start_step=start_step
    )
    groups = _map(
      tf.data.Dataset.zip(plans, records.batch(group)),
      lambda plans, record: _augment_group(
        plans | {"record": record}, lambda p: load_record(*p["record"]), data
      ),
    )
  else:
    load = source.load
    groups = _map(
      plans,
      lambda plans: _augment_group(plans, lambda p: load(p["index"]), data),
    )
  return _map(groups.batch(num_groups, drop_remainder=True), join)


def _augment_group(
  plans: _Tensors, load: Callable[[_Tensors], _Tensors], data: DataConfig
) -> _Tensors:
  """Loads and augments a group of examples, by plans [n, ...].

  Only a tf.data dataset can recover from an unreadable image. One dataset per
  group is cheap; one per image would take a tenth of the whole time.
  """
  shape = [*data.image_size, data.channels]
  signature = {
    "image": tf.TensorSpec(shape, image_headers.Reading.of(data).dtype),
    "label": tf.TensorSpec([], tf.int32),
    "readable": tf.TensorSpec([], tf.bool),
    "id": tf.TensorSpec([], tf.int64),
    "reason": tf.TensorSpec([], tf.string),
  }

  def each(may_fail: bool) -> Callable[[_Tensors], _Tensors]:
    return lambda plans: tf.map_fn(
      lambda plan: _augment(load(plan), plan, data, may_fail),
      plans,
      fn_output_signature=signature,
      parallel_iterations=1,
    )

  return decode.map_with_fallback(
    plans, each(may_fail=True), each(may_fail=False)
  )


def eval_batches(
  source: Source,
  data: DataConfig,
  *,
  batch_size: int,
  rows: np.ndarray,
  limit: int = 0,
  unreadable: BadImages | None = None,
) -> Iterator[Batch]:
  """Returns one pass over a source in a fixed order, without augmentation.

  The last batch is padded, so no example is dropped.

  Args:
    source: from `open_source`, of either split.
    data: `image_size`, `channels`, and settings named `eval_...`.
    batch_size: B, over all processes.
    rows: increasing numbers in 0..B-1, the rows this process needs.
    limit: the largest number of examples, spread evenly over the source and the
      same each time; 0 for all.
    unreadable: collects the images that cannot be read.

  Returns:
    Iterator over {"image": [len(rows), H, W, C], "label": int32
    [len(rows)], "mask": float32 [len(rows)], "readable": bool [len(rows)],
    "id": int32 [len(rows), 2], for `decode_ids`}.
    `mask` is 1 for an example and 0 for padding and for unreadable images,
    whose image and label are 0. Every process gets the same number of batches.
    The order depends on B, and not on the rows. The iterator raises
    TrainingError if a record file is damaged.

  Raises:
    ConfigError: if the settings contradict the source.
    ValueError: if the rows are not increasing numbers in 0..B-1.
  """
  rows = _check(source, data, rows, batch_size)
  source = source.subset(limit)
  total = source.num_examples

  if isinstance(source, Records):
    load_record = source.load
    num, elements = record_shards.eval_stream(
      source, record_shards=data.record_shards, batch_size=batch_size, rows=rows
    )

    def from_record(
      id_: tf.Tensor, serialized: tf.Tensor, real: tf.Tensor
    ) -> _Tensors:
      return _eval_example(real, lambda: load_record(id_, serialized), data)

    batches = _map(elements, from_record).batch(len(rows)).take(num)
    return _iterate(batches, source, unreadable, with_ids=True)

  load = source.load
  steps = tf.data.Dataset.range(-(-total // batch_size))
  positions = steps.map(lambda step: step * batch_size + rows)
  if isinstance(source, Arrays):

    def whole_batch(position: tf.Tensor) -> _Tensors:
      record = load(tf.minimum(position, total - 1))
      image = preprocess.fit_arrays(
        record["image"], **preprocess.fit_settings(data)
      )
      real = position < total
      return {
        "image": tf.where(real[:, None, None, None], image, 0),
        "label": tf.cast(tf.where(real, record["label"], 0), tf.int32),
        "mask": tf.cast(real, tf.float32),
        "readable": tf.ones_like(real),
        "id": tf.where(real, record["id"], 0),
      }

    batches = _map(positions, whole_batch)
    return _iterate(batches, source, unreadable, with_ids=True)

  def from_index(position: tf.Tensor) -> _Tensors:
    return _eval_example(position < total, lambda: load(position), data)

  batches = _map(positions.unbatch(), from_index).batch(len(rows))
  return _iterate(batches, source, unreadable, with_ids=True)


def decode_ids(ids: np.ndarray) -> np.ndarray:
  """Returns the ids [n], int64, of an array of `eval_batches` [n, 2]."""
  decoded: np.ndarray = np.ascontiguousarray(ids).view(np.int64)[:, 0]
  return decoded


def check_readable(source: Source, data: DataConfig) -> None:
  """Reads eight images, spread evenly over the source.

  Raises:
    ConfigError: if none of them can be read.
  """
  if isinstance(source, Arrays):
    return
  number = min(8, source.num_examples)
  found = BadImages(max_warnings=0)
  try:
    batches = eval_batches(
      source,
      data,
      batch_size=number,
      rows=np.arange(number),
      limit=number,
      unreadable=found,
    )
    readable = sum(batch["mask"].sum() for batch in batches)
  except TrainingError as error:
    raise ConfigError(str(error)) from error
  if not readable:
    raise ConfigError(
      f"none of {number} images, spread evenly over {source.num_examples}, can "
      f"be read: replace or remove them. They are\n{found.listing()}"
    )


def _check(
  source: Source, data: DataConfig, rows: np.ndarray, batch_size: int
) -> np.ndarray:
  rows = np.asarray(rows, np.int64)
  for name in ("color_jitter", "randaugment"):
    value = getattr(data, name)
    if value and data.channels not in (1, 3):
      raise ConfigError(
        f"data.{name}={value:g} works with 1 or 3 channels, not with "
        f"data.channels={data.channels}: set --config.data.{name}=0"
      )
  if (
    rows.ndim != 1
    or not len(rows)
    or (np.diff(rows) <= 0).any()
    or rows[0] < 0
    or rows[-1] >= batch_size
  ):
    raise ValueError(
      f"rows={rows} must be one or more increasing numbers in "
      f"0..{batch_size - 1}: give each process a part of the batch"
    )
  if isinstance(source, Arrays):
    source.check_channels(data)
  return rows


def _augment(
  record: _Tensors, plan: _Tensors, data: DataConfig, may_fail: bool
) -> _Tensors:
  image, reason = preprocess.random_resized_crop(
    record,
    plan["crop"],
    reading=image_headers.Reading.of(data),
    may_fail=may_fail,
    **_crop_settings(data),
  )
  readable = reason == b""
  mean = np.rint(255 * np.asarray(data.mean)).clip(0, 255)
  mean = mean.astype(image_headers.Reading.of(data).dtype)
  # tf.where would take milliseconds to broadcast.
  image = tf.cond(readable, lambda: image, lambda: tf.zeros_like(image) + mean)
  result = _augment_pixels(image, record["label"], plan, data)
  return result | {
    "readable": readable,
    "id": record["id"],
    "reason": reason,
  }


def _augment_arrays(
  record: _Tensors, plans: _Tensors, data: DataConfig
) -> _Tensors:
  images = preprocess.random_resized_crop_arrays(
    record["image"], plans["crop"], **_crop_settings(data)
  )
  result = _augment_pixels(images, record["label"], plans, data)
  return result | {"readable": tf.ones_like(record["label"], tf.bool)}


def _crop_settings(data: DataConfig) -> dict[str, Any]:
  return {
    "size": data.image_size,
    "scale": data.crop_scale,
    "ratio": data.crop_ratio,
    "clipped": data.crop_clipped,
    "fixed": data.crop_fixed,
  }


def _augment_pixels(
  images: tf.Tensor, labels: tf.Tensor, plans: _Tensors, data: DataConfig
) -> _Tensors:
  if data.flip:
    images = preprocess.random_flip(images, plans["flip"])
  if data.color_jitter:
    jitter = functools.partial(augment.color_jitter, strength=data.color_jitter)
    images = preprocess.map_pillow(jitter, images, plans["color_jitter"])
  if data.randaugment:
    mean = np.broadcast_to(data.mean, images.shape[-1])
    change = functools.partial(
      augment.rand_augment,
      magnitude=data.randaugment,
      std=data.randaugment_std,
      fill=tuple(round(255 * each) for each in mean),
    )
    images = preprocess.map_pillow(change, images, plans["randaugment"])
  return {"image": images, "label": tf.cast(labels, tf.int32)}


def _eval_example(
  real: tf.Tensor, load: Callable[[], _Tensors], data: DataConfig
) -> _Tensors:
  """Loads one example for evaluation, or makes padding if not `real`."""

  def example() -> tuple[tf.Tensor, ...]:
    record = load()
    image, reason = preprocess.fit(
      record,
      reading=image_headers.Reading.of(data),
      **preprocess.fit_settings(data),
    )
    readable = reason == b""
    label = tf.where(readable, tf.cast(record["label"], tf.int32), 0)
    image = tf.cond(readable, lambda: image, lambda: tf.zeros_like(image))
    return image, label, record["id"], reason

  shape = [*data.image_size, data.channels]
  image, label, id_, reason = tf.cond(
    real,
    example,
    lambda: (
      tf.zeros(shape, image_headers.Reading.of(data).dtype),
      tf.constant(0),
      tf.constant(0, tf.int64),
      tf.constant(b""),
    ),
  )
  readable = reason == b""
  return {
    "image": tf.ensure_shape(image, shape),
    "label": label,
    "mask": tf.cast(real & readable, tf.float32),
    "readable": readable,
    "id": id_,
    "reason": reason,
  }


def _map(
  dataset: tf.data.Dataset, function: Callable[..., _Tensors]
) -> tf.data.Dataset:
  return dataset.map(
    # Nothing here needs AutoGraph, and its conversion takes seconds.
    tf.autograph.experimental.do_not_convert(function),
    num_parallel_calls=tf.data.AUTOTUNE,
    deterministic=True,
  )


def _iterate(
  batches: tf.data.Dataset,
  source: Source,
  unreadable: BadImages | None,
  with_ids: bool = False,
) -> Iterator[Batch]:
  return tf_iterator.close_at_exit(
    _report_unreadable(batches, source, unreadable, with_ids)
  )


def _report_unreadable(
  batches: tf.data.Dataset,
  source: Source,
  unreadable: BadImages | None,
  with_ids: bool,
) -> Generator[Batch]:
  """Yields the batches without "reason", and without "id" in training."""
  unreadable = BadImages(max_warnings=0) if unreadable is None else unreadable
  try:
    for batch in tf_iterator.numpy_batches(batches.prefetch(tf.data.AUTOTUNE)):
      absent = np.zeros(0)  # arrays have neither
      ids, reasons = batch.pop("id", absent), batch.pop("reason", absent)
      for place in np.flatnonzero(reasons):
        name = source.name(int(ids.flat[place]))
        unreadable.report(name, reasons.flat[place].decode())
      if with_ids:  # JAX has no int64 by default
        batch["id"] = ids.view(np.int32).reshape(-1, 2)
      image_headers.print_notes()
      yield batch
  except tf.errors.OpError as error:
    raise read_error(source, error) from error


def read_error(source: Source, error: tf.errors.OpError) -> TrainingError:
  """Explains an error of reading that is not limited to one image."""
  reason = re.sub(r"{{.*?}}\s*|\s*\[Op:.*", "", error.message)
  file = None
  if isinstance(source, Records):
    print(
      f"{reason}: looking for the damaged file", file=sys.stderr, flush=True
    )
    file = record_shards.find_damaged_file(source)
  if file is None:
    return TrainingError(
      f"the images cannot be read: {reason}. Saved checkpoints are kept: run "
      "the same command again when the images can be read"
    )
  return TrainingError(
    f"the record file {file} is damaged: {reason}. Saved checkpoints are kept: "
    "replace the file by a good copy, or prepare the data set again, and run "
    "the same command again"
  )
