"""The two kinds of source, and what a record is.

A record is a dict of scalars: `image`, the bytes of an image file, or `file`,
its path; `label`, int64, -1 if the image has none; and `id`, int64, of which
the source can tell the image's name. A source whose images are small arrays of
one shape gives whole batches instead: see `Indexed`.

`identity` is what makes two openings the same data, wherever they lie.

Neither kind knows about epochs, batches or processes: the pipeline does.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeAlias

import numpy as np
import tensorflow as tf

from mae_jax.config import DataConfig
from mae_jax.utils.errors import ConfigError

Split: TypeAlias = Literal["train", "eval"]
Record: TypeAlias = dict[str, tf.Tensor]
Identity: TypeAlias = Mapping[str, int | str]

_NUMBER = 1 << 40  # more than there are records in a file


@dataclasses.dataclass(frozen=True)
class Indexed:
  """Images that can be read in any order, so that an epoch is a permutation.

  Attributes:
    num_examples: N.
    class_names: the name of each label, or None if there are no labels.
    load: TensorFlow function from an int64 index in 0..N-1 to a record. If
      `image_shape` is set, from indices [n] to `image` uint8 [n, H, W, C] and
      `label` int64 [n].
    identity: equal for the same images in the same order.
    image_shape: (H, W, C) if the images are decoded arrays of one shape.
    name: from an `id` to what an image is called in messages.
    labels: [N], what `load` gives as `label`; None if there are no labels.
  """

  num_examples: int
  class_names: tuple[str, ...] | None
  load: Callable[[tf.Tensor], Record]
  identity: Identity = dataclasses.field(default_factory=dict)
  image_shape: tuple[int, int, int] | None = None
  name: Callable[[int], str] = str
  labels: np.ndarray | None = None

  def subset(self, limit: int) -> Indexed:
    """At most `limit` examples, evenly spaced; all of them if it is 0."""
    total, load, labels = self.num_examples, self.load, self.labels
    if not 0 < limit < total:
      return self
    chosen = np.arange(limit) * total // limit
    return dataclasses.replace(
      self,
      num_examples=limit,
      load=lambda index: load(index * total // limit),
      labels=None if labels is None else labels[chosen],
    )


@dataclasses.dataclass(frozen=True)
class Piece:
  """Some records of one file: number skip, skip + stride, ..., `take` of them.

  Attributes:
    path: a TFRecord file.
    skip: records before the first.
    take: how many records.
    stride: from one record to the next.
  """

  path: str
  skip: int
  take: int
  stride: int = 1

  def part(self, start: int, stop: int) -> Piece:
    """The records start..stop-1 of this piece."""
    return dataclasses.replace(
      self, skip=self.skip + start * self.stride, take=stop - start
    )


@dataclasses.dataclass(frozen=True)
class Records:
  """Images that are read from the front of TFRecord files.

  Attributes:
    pieces: what to read, in order.
    class_names: the name of each label, or None if there are no labels.
    parse: TensorFlow function from a serialized example to a record, but for
      its `id`, which comes with the example.
    shuffled: whether the files were written in random order, so that the first
      records of a file are as good a sample of it as any.
    identity: equal for the same images in the same order.
  """

  pieces: tuple[Piece, ...]
  class_names: tuple[str, ...] | None
  parse: Callable[[tf.Tensor], Record]
  shuffled: bool
  identity: Identity = dataclasses.field(default_factory=dict)

  @property
  def files(self) -> tuple[str, ...]:
    """The paths of all files, each once."""
    return tuple(dict.fromkeys(piece.path for piece in self.pieces))

  def first_ids(self, pieces: Iterable[Piece]) -> list[int]:
    """The `id` of each piece's first record; the next is `stride` more."""
    place = {path: number for number, path in enumerate(self.files)}
    return [place[piece.path] * _NUMBER + piece.skip for piece in pieces]

  def name(self, id_: int) -> str:
    """Says where a record is, for messages."""
    file, number = divmod(id_, _NUMBER)
    return f"{self.files[file]}:{number}"

  @property
  def num_examples(self) -> int:
    """N, over all files."""
    return sum(piece.take for piece in self.pieces)

  def subset(self, limit: int) -> Records:
    """At most `limit` examples, an even share of each file; all if it is 0.

    The share is the first records of a file, so that a small subset of a large
    data set reads little of it, unless the files are sorted in some way; then
    it is spread over the file.
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
    """Divides the records, in order, into parts that differ by at most one."""
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
  """A short name of a sequence, for an identity."""
  total = hashlib.sha256()
  for item in items:
    total.update(len(item).to_bytes(4, "little") + item)
  return total.hexdigest()[:16]


def check_channels(data: DataConfig) -> None:
  """Raises ConfigError unless image files can be decoded to data.channels."""
  if data.channels not in (1, 3):
    raise ConfigError(
      f"data.channels={data.channels}: image files are read as 1 (gray) or 3 "
      "(color) channels; set --config.data.channels to one of them"
    )
