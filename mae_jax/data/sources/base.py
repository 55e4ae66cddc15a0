"""The kinds of source: `Files` and `Arrays` with random access, and `Records`.

A record is a dict of scalars: `image`, the bytes of an image file, or `file`,
its path; `label`, int64, -1 if there is none; and `id`, int64, which the
source's `name` maps to the image's name. With `offset` and `length`, int64, the
image file is a part of `file`, such as a member of a tar. Small arrays of one
shape are loaded a batch at a time instead.

`identity` is equal for two sources with the same data, wherever it is stored.
Epochs, batches and processes are the pipeline's business.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, Self, TypeAlias

import numpy as np

from mae_jax.config import DataConfig
from mae_jax.data.tf_setup import tf
from mae_jax.utils.errors import ConfigError

Split: TypeAlias = Literal["train", "eval"]
Record: TypeAlias = dict[str, tf.Tensor]
Identity: TypeAlias = Mapping[str, int | str]

_IDS_PER_FILE = 1 << 40  # more than the records of any file


@dataclasses.dataclass(frozen=True)
class Indexed:
  """Images with random access, so that an epoch is a permutation.

  Attributes:
    num_examples: N.
    class_names: the name of each label; None if there are no labels.
    load: TensorFlow function of an int64 index in 0..N-1, or of several.
    identity: equal for the same images in the same order.
    name: function from an `id` to the image's name in messages.
    labels: [N], the labels that `load` returns; None if there are no labels, or
      only reading the images gives them.
    where: the folder of the images, for messages; "" if there is none.
  """

  num_examples: int
  class_names: tuple[str, ...] | None
  load: Callable[[tf.Tensor], Record]
  identity: Identity = dataclasses.field(default_factory=dict)
  name: Callable[[int], str] = str
  labels: np.ndarray | None = None
  where: str = ""

  def take(self, chosen: np.ndarray) -> Self:
    """Returns the examples of the indices `chosen` [n], in that order."""
    load, table = self.load, tf.constant(chosen, tf.int64)
    return dataclasses.replace(
      self,
      num_examples=len(chosen),
      load=lambda index: load(tf.gather(table, index)),
      labels=None if self.labels is None else self.labels[chosen],
    )

  def subset(self, limit: int) -> Self:
    """Returns at most `limit` examples, evenly spaced; all if `limit` is 0."""
    if not 0 < limit < self.num_examples:
      return self
    return self.take(np.arange(limit) * self.num_examples // limit)


class Files(Indexed):
  """Image files: `load` maps one index to a record."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrays(Indexed):
  """Decoded images of one shape.

  `load` maps indices [n] to `image` uint8 [n, H, W, C], and `label` and `id`,
  int64 [n].

  Attributes:
    channels: C.
  """

  channels: int

  @classmethod
  def create(
    cls,
    images: np.ndarray,
    identity: Identity,
    class_names: tuple[str, ...] | None = None,
    labels: np.ndarray | None = None,
  ) -> Self:
    """Makes a source of images [N, H, W, C] and labels [N], or None.

    Raises:
      ValueError: if there are more or fewer labels, or they are no integers.
    """
    count = len(images)
    if labels is not None and (
      len(labels) != count or labels.dtype.kind not in "iu"
    ):
      raise ValueError(
        f"{len(labels)} labels of {labels.dtype} for {count} images: give an "
        "integer for each"
      )
    image_table = tf.constant(images)
    label_table = tf.constant([-1] * count if labels is None else labels)

    def load(indices: tf.Tensor) -> Record:
      return {
        "image": tf.gather(image_table, indices),
        "label": tf.cast(tf.gather(label_table, indices), tf.int64),
        "id": tf.cast(indices, tf.int64),
      }

    return cls(
      num_examples=count,
      class_names=class_names,
      load=load,
      identity=identity,
      labels=labels,
      channels=images.shape[-1],
    )

  def check_channels(self, data: DataConfig) -> None:
    """Raises ConfigError unless the arrays have data.channels channels."""
    if self.channels != data.channels:
      raise ConfigError(
        f"data.channels={data.channels}, but the arrays of data.source="
        f"{data.source!r} have {self.channels}: set "
        f"--config.data.channels={self.channels}"
      )


@dataclasses.dataclass(frozen=True)
class Piece:
  """A strided range of records of one file: skip, skip + stride, ...

  Attributes:
    path: a TFRecord file.
    skip: number of records before the first one.
    take: number of records.
    stride: distance between two records.
  """

  path: str
  skip: int
  take: int
  stride: int = 1

  def part(self, start: int, stop: int) -> Self:
    """Returns the records start..stop-1 of this piece."""
    return dataclasses.replace(
      self, skip=self.skip + start * self.stride, take=stop - start
    )


@dataclasses.dataclass(frozen=True)
class Records:
  """Images in TFRecord files, which are read sequentially.

  Attributes:
    pieces: the records to read, in order.
    class_names: the name of each label; None if there are no labels.
    parse: TensorFlow function from a serialized example to a record without its
      `id`, which comes with the example.
    shuffled: whether the files were written in random order. Then the first
      records of a file are a fair sample of it.
    identity: equal for the same images in the same order.
  """

  pieces: tuple[Piece, ...]
  class_names: tuple[str, ...] | None
  parse: Callable[[tf.Tensor], Record]
  shuffled: bool
  identity: Identity = dataclasses.field(default_factory=dict)

  def load(self, id_: tf.Tensor, serialized: tf.Tensor) -> Record:
    """Returns the record of a serialized example."""
    return self.parse(serialized) | {"id": id_}

  @property
  def files(self) -> tuple[str, ...]:
    """Paths of all files, each once."""
    return tuple(dict.fromkeys(piece.path for piece in self.pieces))

  def first_ids(self, pieces: Iterable[Piece]) -> list[int]:
    """Returns the `id` of each piece's first record; ids grow by `stride`."""
    place = {path: number for number, path in enumerate(self.files)}
    return [place[piece.path] * _IDS_PER_FILE + piece.skip for piece in pieces]

  def name(self, id_: int) -> str:
    """Returns "file:number" of a record, for messages."""
    file, number = divmod(id_, _IDS_PER_FILE)
    return f"{self.files[file]}:{number}"

  @property
  def num_examples(self) -> int:
    """N, over all files."""
    return sum(piece.take for piece in self.pieces)

  def subset(self, limit: int) -> Self:
    """Returns at most `limit` examples; all if `limit` is 0.

    Each file contributes in proportion to its size. From shuffled files the
    first records are taken, so that a small subset of a large data set reads
    little. From other files the records are evenly spaced.
    """
    total = self.num_examples
    if not 0 < limit < total:
      return self
    pieces, start = [], 0
    for piece in self.pieces:
      stop = start + piece.take
      take = stop * limit // total - start * limit // total
      if take:
        step = 1 if self.shuffled else piece.take // take
        stride = piece.stride * step
        pieces.append(dataclasses.replace(piece, take=take, stride=stride))
      start = stop
    return dataclasses.replace(self, pieces=tuple(pieces))

  def split(self, parts: int) -> list[list[Piece]]:
    """Divides the records, in order, into parts whose sizes differ by <= 1."""
    total = self.num_examples
    ends = np.cumsum([piece.take for piece in self.pieces])
    result: list[list[Piece]] = []
    for part in range(parts):
      start = part * total // parts
      stop = (part + 1) * total // parts
      inside = []
      for number in range(
        int(np.searchsorted(ends, start, side="right")), len(self.pieces)
      ):
        piece = self.pieces[number]
        begin = int(ends[number]) - piece.take
        if begin >= stop:
          break
        first, last = max(start - begin, 0), min(stop - begin, piece.take)
        inside.append(piece.part(first, last))
      result.append(inside)
    return result


Source: TypeAlias = Indexed | Records


def digest(items: Iterable[bytes]) -> str:
  """Hashes a sequence of byte strings to 16 hex digits, for an identity."""
  total = hashlib.sha256()
  for item in items:
    total.update(len(item).to_bytes(4, "little") + item)
  return total.hexdigest()[:16]


def check_color(data: DataConfig) -> None:
  """Raises ConfigError unless image files can be decoded to data.channels."""
  if data.channels not in (1, 3):
    raise ConfigError(
      f"data.channels={data.channels}: image files are read as 1 (gray) or 3 "
      "(color) channels; set --config.data.channels to one of them"
    )
