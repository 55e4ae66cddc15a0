"""Statistics of a data set: image sizes, colors, classes, unreadable images."""

import collections
import dataclasses
import time
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from mae_jax.config import DataConfig
from mae_jax.data import (
  decode,
  duplicates,
  image_headers,
  image_io,
  pipeline,
  record_shards,
  tf_iterator,
)
from mae_jax.data.bad_images import BadImages
from mae_jax.data.sources import Arrays, Records, Source
from mae_jax.data.tf_setup import tf

_Tensors = dict[str, tf.Tensor]
SAMPLES = 64  # images that `measure_throughput` returns
_GROUP_SIZE = 16  # images per batch of statistics
_BLOCK_PIXELS = 1 << 20  # sums of int64 take 16 bytes for each byte


@dataclasses.dataclass(frozen=True)
class Survey:
  """Statistics of a data set, in which every image has the same weight.

  Attributes:
    sizes: int [N, 2], heights and widths of the readable images.
    thumbnails: uint8 [N, ...] of `duplicates.thumbnail`.
    ids: int [N], of which the source's `name` makes names.
    mean: [C], mean of pixels in [0, 1].
    std: [C], standard deviation of pixels in [0, 1].
    gray: number of images whose channels are all equal; 0 if C is 1.
    uniform: number of images whose pixels are all equal.
    transparent: number of images with pixels that are not opaque.
    values: [K], sampled values of files of more than 8 bits, as stored.
    labels: number of images by label.
    unreadable: names of unreadable images, with reasons.
  """

  sizes: np.ndarray
  thumbnails: np.ndarray
  ids: np.ndarray
  mean: np.ndarray
  std: np.ndarray
  gray: int
  uniform: int
  transparent: int
  values: np.ndarray
  labels: collections.Counter[int]
  unreadable: BadImages

  @property
  def num_images(self) -> int:
    """Number of images, readable or not."""
    return len(self.sizes) + len(self.unreadable.names)

  def enlarged(self, size: tuple[int, int], keep: float = 1.0) -> float:
    """Returns the fraction of images that are enlarged for the network.

    Args:
      size: height and width of the network's input.
      keep: the smallest fraction of an image's sides that a crop keeps.
    """
    short = self.sizes * keep < np.asarray(size)
    return float(short.any(axis=1).mean()) if len(self.sizes) else 0.0


def survey_images(
  source: Source,
  data: DataConfig,
  progress: Callable[[int], object] = lambda number: None,
) -> Survey:
  """Decodes every image of a source once, and returns statistics.

  Args:
    source: any source; `subset` makes it smaller.
    data: settings of reading files, as `channels` and `exif_rotate`.
    progress: called with the number of images decoded since the last call.

  Raises:
    TrainingError: if a record file is damaged.
  """
  unreadable = BadImages(max_warnings=0)
  kept: dict[str, list[np.ndarray]] = {"size": [], "thumbnail": [], "id": []}
  labels: collections.Counter[int] = collections.Counter()
  total = np.zeros((2, data.channels))
  counts: collections.Counter[str] = collections.Counter()
  values: list[np.ndarray] = []
  for batch in tf_iterator.close_at_exit(_image_stats(source, data)):
    good = batch["reason"] == b""
    for place in np.flatnonzero(~good):
      name = source.name(int(batch["id"][place]))
      unreadable.report(name, batch["reason"][place].decode(errors="replace"))
    labels.update(batch["label"].tolist())
    for name, parts in kept.items():
      parts.append(batch[name][good])
    total += batch["moments"][good].sum(axis=0)
    values.append(batch["values"][np.isfinite(batch["values"])])
    for name in ("gray", "uniform", "transparent"):
      counts[name] += int(batch[name][good].sum())
    progress(len(good))
  sizes, thumbnails, ids = map(np.concatenate, kept.values())
  mean, square = total / max(len(sizes), 1)
  std = np.sqrt(np.maximum(square - mean**2, 0))
  labels.pop(-1, None)
  return Survey(
    sizes,
    thumbnails,
    ids,
    mean,
    std,
    counts["gray"],
    counts["uniform"],
    counts["transparent"],
    np.concatenate(values) if values else np.zeros(0),
    labels,
    unreadable,
  )


def _image_stats(
  source: Source, data: DataConfig
) -> Generator[dict[str, np.ndarray]]:
  """Yields statistics of each image, in batches of _GROUP_SIZE."""
  if isinstance(source, Records):
    records = record_shards.all_records(source).map(source.load)
    stats = _stats_of_files(records, data)
  else:
    load, numbers = source.load, tf.data.Dataset.range(source.num_examples)
    if isinstance(source, Arrays):
      stats = numbers.batch(_GROUP_SIZE).map(
        lambda indices: _stats_of_arrays(load(indices))
      )
    else:
      stats = _stats_of_files(numbers.map(load), data)
  try:
    yield from tf_iterator.numpy_batches(stats.prefetch(tf.data.AUTOTUNE))
  except tf.errors.OpError as error:
    raise pipeline.read_error(source, error) from error


def _stats_of_files(
  records: tf.data.Dataset, data: DataConfig
) -> tf.data.Dataset:
  def measure(record: _Tensors) -> _Tensors:
    image, reason = decode.decode(record, image_headers.Reading.of(data))
    return {
      "size": tf.shape(image)[:2],
      "thumbnail": _thumbnail(image),
      "moments": _moments_of_rows(image),
      "gray": _is_gray(image, [0, 1]),
      "uniform": tf.reduce_all(image == image[:1, :1]),
      "transparent": _look(record, image_io.is_transparent, tf.bool, []),
      "values": _look(
        record,
        lambda content: image_io.sample_values(content, data.channels),
        tf.float64,
        [256],
      ),
      "label": tf.cast(record["label"], tf.int64),
      "id": record["id"],
      "reason": reason,
    }

  unconverted = tf.autograph.experimental.do_not_convert(measure)
  stats = records.map(unconverted, num_parallel_calls=tf.data.AUTOTUNE)
  return stats.batch(_GROUP_SIZE)


def _look(
  record: _Tensors,
  function: Callable[[bytes], Any],
  dtype: tf.DType,
  shape: list[int],
) -> tf.Tensor:
  """Applies a function to the bytes of a file."""
  data, _ = decode.read(record)
  found = tf.numpy_function(
    lambda data: np.asarray(function(data)), [data], dtype, stateful=False
  )
  return tf.ensure_shape(found, shape)


def _thumbnail(image: tf.Tensor) -> tf.Tensor:
  found = tf.numpy_function(
    duplicates.thumbnail, [image], tf.uint8, stateful=False
  )
  return tf.ensure_shape(found, [duplicates.SIDE**2])


def _stats_of_arrays(record: _Tensors) -> _Tensors:
  images = record["image"]
  count = tf.shape(images)[0]
  return {
    "size": tf.repeat(tf.shape(images)[None, 1:3], count, axis=0),
    "thumbnail": tf.map_fn(_thumbnail, images, fn_output_signature=tf.uint8),
    "moments": _moments(images, [1, 2]),
    "gray": _is_gray(images, [1, 2]),
    "uniform": tf.reduce_all(images == images[:, :1, :1], [1, 2, 3]),
    "transparent": tf.zeros([count], tf.bool),
    "values": tf.zeros([count, 0], tf.float64),
    "label": record["label"],
    "id": record["id"],
    "reason": tf.repeat(tf.constant([b""]), count),
  }


def _moments(images: tf.Tensor, axes: list[int]) -> tf.Tensor:
  """Computes means of pixels in [0, 1] and of squares, float64 [..., 2, C]."""
  # Integer sums are exact for images of any size.
  values = tf.cast(images, tf.int64 if images.dtype == tf.uint8 else tf.float64)
  count = tf.cast(tf.reduce_prod(tf.gather(tf.shape(images), axes)), tf.float64)
  sums = [
    tf.cast(tf.reduce_sum(each, axes), tf.float64) / count
    for each in (values, values * values)
  ]
  return tf.stack([sums[0] / 255, sums[1] / 255**2], axis=-2)


def _moments_of_rows(image: tf.Tensor) -> tf.Tensor:
  """Computes `_moments` of one image, row by row if it is large."""
  shape = tf.shape(image)
  rows = tf.maximum(_BLOCK_PIXELS // shape[1], 1)

  def add(first: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    part = image[first : first + rows]
    share = tf.shape(part)[0] / shape[0]  # float64
    return first + rows, total + share * _moments(part, [0, 1])

  _, total = tf.while_loop(
    lambda first, _: first < shape[0],
    add,
    [0, tf.zeros([2, image.shape[-1]], tf.float64)],
    parallel_iterations=1,
  )
  return total


def _is_gray(images: tf.Tensor, axes: list[int]) -> tf.Tensor:
  if images.shape[-1] == 1:
    return tf.zeros(tf.shape(images)[: axes[0]], tf.bool)
  return tf.reduce_all(images == images[..., :1], axis=[*axes, axes[-1] + 1])


def measure_throughput(
  source: Source, data: DataConfig, seconds: float = 5.0
) -> tuple[float, np.ndarray, np.ndarray]:
  """Measures the speed of the training input pipeline.

  Args:
    source: training images.
    data: the settings; a batch has at most SAMPLES images.
    seconds: duration of the measurement, after the first batch.

  Returns:
    Images per second, augmented images [SAMPLES, H, W, C], and their labels
    [SAMPLES], -1 for none.
  """
  size = min(SAMPLES, data.batch_size)
  small = dataclasses.replace(
    data,
    batch_size=size,
    record_shards=record_shards.num_record_shards(
      data.record_shards, size, size
    ),
  )
  batches = pipeline.train_batches(
    source,
    small,
    seed=0,
    rows=np.arange(size),
    unreadable=BadImages(max_warnings=0),
  )
  samples = [next(batches)]
  begin, count = time.monotonic(), 0
  while count < SAMPLES - size or time.monotonic() - begin < seconds:
    batch = next(batches)
    count += size
    if count < SAMPLES:
      samples.append(batch)
  rate = max(count, 1) / (time.monotonic() - begin)
  images, labels = (
    np.concatenate([batch[name] for batch in samples])[:SAMPLES]
    for name in ("image", "label")
  )
  return rate, images, labels
