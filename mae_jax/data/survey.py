"""What a data set is like: sizes, colors, classes, and what cannot be read."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Generator

import numpy as np
import tensorflow as tf

from mae_jax.config import DataConfig
from mae_jax.data import decode, pipeline, record_shards, tf_iterator
from mae_jax.data.bad_images import BadImages
from mae_jax.data.sources import Indexed, Source

_Tensors = dict[str, tf.Tensor]
SAMPLES = 64  # that `rate` shows
_GROUP_SIZE = 16  # images that are looked at together


@dataclasses.dataclass(frozen=True)
class Survey:
  """What was found in images, each of which counts as much as any other.

  Attributes:
    sizes: int [N, 2], heights and widths of those that can be read.
    mean: [C] of pixels in [0, 1].
    std: [C] about that mean.
    gray: how many have the same value in all channels; 0 of one channel.
    labels: how many images have each label.
    unreadable: names, with reasons.
  """

  sizes: np.ndarray
  mean: np.ndarray
  std: np.ndarray
  gray: int
  labels: collections.Counter[int]
  unreadable: BadImages

  @property
  def looked_at(self) -> int:
    """Images, whether they can be read or not."""
    return len(self.sizes) + len(self.unreadable.names)

  def enlarged(self, size: tuple[int, int], keep: float = 1.0) -> float:
    """The share of images that are enlarged for the network.

    Args:
      size: height and width it is shown.
      keep: the share of an image's sides that is shown at the least.
    """
    short = self.sizes * keep < np.asarray(size)
    return float(short.any(axis=1).mean()) if len(self.sizes) else 0.0


def survey_images(
  source: Source,
  data: DataConfig,
  tell: Callable[[int], object] = lambda number: None,
) -> Survey:
  """Decodes every image of a source once.

  Args:
    source: of any kind; `subset` makes it smaller.
    data: `channels` and `exif_rotate`.
    tell: is told how many images were looked at since.

  Raises:
    TrainingError: if a file of records is damaged.
  """
  unreadable = BadImages(shown=0)
  sizes: list[np.ndarray] = []
  labels: collections.Counter[int] = collections.Counter()
  total = np.zeros((2, data.channels))
  gray = 0
  for batch in tf_iterator.close_at_exit(_image_stats(source, data)):
    good = batch["reason"] == b""
    for place in np.flatnonzero(~good):
      name = source.name(int(batch["id"][place]))
      unreadable.report(name, batch["reason"][place].decode(errors="replace"))
    labels.update(batch["label"].tolist())
    sizes.append(batch["size"][good])
    total += batch["moments"][good].sum(axis=0)
    gray += int(batch["gray"][good].sum())
    tell(len(good))
  found = np.concatenate(sizes)
  mean, square = total / max(len(found), 1)
  std = np.sqrt(np.maximum(square - mean**2, 0))
  labels.pop(-1, None)
  return Survey(found, mean, std, gray, labels, unreadable)


def _image_stats(
  source: Source, data: DataConfig
) -> Generator[dict[str, np.ndarray]]:
  """What of each image is counted, a few images at a time."""
  if isinstance(source, Indexed):
    # Bound here, where the type is known.
    load, shape = source.load, source.image_shape
    numbers = tf.data.Dataset.range(source.num_examples)
    if shape is not None:
      looks = numbers.batch(_GROUP_SIZE).map(
        lambda index: _stats_of_arrays(load(index))
      )
    else:
      looks = _stats_of_files(numbers.map(load), data)
  else:
    parse = source.parse
    _, elements = record_shards.eval_stream(
      source, record_shards=1, batch_size=1, rows=np.zeros(1, np.int64)
    )
    real = elements.filter(lambda id_, serialized, real: real)
    looks = _stats_of_files(
      real.map(lambda id_, serialized, _: parse(serialized) | {"id": id_}), data
    )
  try:
    yield from tf_iterator.numpy_batches(looks.prefetch(tf.data.AUTOTUNE))
  except tf.errors.OpError as error:
    raise pipeline.read_error(source, error) from error


def _stats_of_files(
  records: tf.data.Dataset, data: DataConfig
) -> tf.data.Dataset:
  def look(record: _Tensors) -> _Tensors:
    image, reason = decode.decode(
      record, channels=data.channels, exif_rotate=data.exif_rotate
    )
    return {
      "size": tf.shape(image)[:2],
      "moments": _moments(image, [0, 1]),
      "gray": _is_gray(image, [0, 1]),
      "label": tf.cast(record["label"], tf.int64),
      "id": record["id"],
      "reason": reason,
    }

  unconverted = tf.autograph.experimental.do_not_convert(look)
  looked = records.map(unconverted, num_parallel_calls=tf.data.AUTOTUNE)
  return looked.batch(_GROUP_SIZE)


def _stats_of_arrays(record: _Tensors) -> _Tensors:
  images = record["image"]
  count = tf.shape(images)[0]
  return {
    "size": tf.repeat(tf.shape(images)[None, 1:3], count, axis=0),
    "moments": _moments(images, [1, 2]),
    "gray": _is_gray(images, [1, 2]),
    "label": record["label"],
    "id": tf.zeros([count], tf.int64),
    "reason": tf.repeat(tf.constant([b""]), count),
  }


def _moments(images: tf.Tensor, axes: list[int]) -> tf.Tensor:
  """Means of pixels in [0, 1] and of their squares, float64 [..., 2, C]."""
  # Sums of integers are exact, of images of any size.
  values = tf.cast(images, tf.int64)
  count = tf.cast(tf.reduce_prod(tf.gather(tf.shape(images), axes)), tf.float64)
  sums = [
    tf.cast(tf.reduce_sum(each, axes), tf.float64) / count
    for each in (values, values * values)
  ]
  return tf.stack([sums[0] / 255, sums[1] / 255**2], axis=-2)


def _is_gray(images: tf.Tensor, axes: list[int]) -> tf.Tensor:
  if images.shape[-1] == 1:
    return tf.zeros(tf.shape(images)[: axes[0]], tf.bool)
  return tf.reduce_all(images == images[..., :1], axis=[*axes, axes[-1] + 1])


def measure_throughput(
  source: Source, data: DataConfig, seconds: float = 5.0
) -> tuple[float, np.ndarray]:
  """How fast training batches come.

  Args:
    source: of training images.
    data: the settings; a batch is of SAMPLES images at most.
    seconds: to measure, after the first batch.

  Returns:
    Images a second, and uint8 [SAMPLES, H, W, C] as training has them.
  """
  size = min(SAMPLES, data.batch_size)
  few = dataclasses.replace(
    data,
    batch_size=size,
    record_shards=record_shards.num_record_shards(
      data.record_shards, size, size
    ),
  )
  batches = pipeline.train_batches(
    source, few, seed=0, rows=np.arange(size), unreadable=BadImages(shown=0)
  )
  samples = [next(batches)["image"]]
  begin, count = time.monotonic(), 0
  while count < SAMPLES - size or time.monotonic() - begin < seconds:
    image = next(batches)["image"]
    count += size
    if count < SAMPLES:
      samples.append(image)
  return (
    max(count, 1) / (time.monotonic() - begin),
    np.concatenate(samples)[:SAMPLES],
  )
