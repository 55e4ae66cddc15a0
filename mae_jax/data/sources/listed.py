"""Sources that list their images: a table, shards of arrow or of tar.

Each reads its list of one split into a `Listing`. Classes, the held-out share
and the random access are the same for all, and here.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from mae_jax.config import DataConfig
from mae_jax.data import class_names, holdout
from mae_jax.data.sources import base
from mae_jax.data.tf_setup import tf
from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Listing:
  """N image files, or parts of files, of one split.

  Attributes:
    files: paths of M files.
    file: int [N], the file of each image.
    name: function from 0..N-1 to the image's name in messages.
    key: function from 0..N-1 to a name that is the same wherever the data set
      is stored; `data.holdout` chooses by it.
    labels: N labels as text, "" if one is missing; None if there are none. With
      `classes`, the numbers of classes, where -1 is missing.
    where: the place of the images, for messages.
    classes: the names of classes, if the data set has them.
    offset: int [N], the first byte of each image; None if an image is a file.
    length: int [N], its number of bytes.
  """

  files: Sequence[str]
  file: np.ndarray
  name: Callable[[int], str]
  key: Callable[[int], str]
  labels: Sequence[str] | np.ndarray | None
  where: str
  classes: tuple[str, ...] = ()
  offset: np.ndarray | None = None
  length: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.file)

  def check(self) -> None:
    """Raises ConfigError for no image, or labels of only a part of them."""
    if not len(self):
      raise ConfigError(f"{self.where} has no image: set another data.path")
    if self.labels is None:
      return
    if self.classes:
      numbers = np.asarray(self.labels)
      bad, text = numbers < 0, "no label"
      if (numbers >= len(self.classes)).any():
        bad = numbers >= len(self.classes)
        text = f"the label {numbers[bad][0]} of {len(self.classes)} class names"
    else:
      bad, text = np.array([not x for x in self.labels]), "no label"
    if bad.any():
      raise ConfigError(
        f"{self.name(int(bad.argmax()))} has {text}, as {bad.sum():,} of "
        f"{len(self):,} images: give each image a label, or set "
        "--config.data.label_column=none for images without labels"
      )

  def take(self, chosen: np.ndarray) -> "Listing":
    """Returns the images of the indices `chosen`, in that order."""
    labels = None
    if self.labels is not None:
      labels = [self.labels[k] for k in chosen]
    return dataclasses.replace(
      self,
      file=self.file[chosen],
      name=lambda k: self.name(int(chosen[k])),
      key=lambda k: self.key(int(chosen[k])),
      labels=labels,
      offset=None if self.offset is None else self.offset[chosen],
      length=None if self.length is None else self.length[chosen],
    )


def describe(root: epath.Path, files: Sequence[str]) -> str:
  """Names the shards of one split, for `Listing.where`."""
  more = f" and {len(files) - 1} more" * (len(files) > 1)
  return f"{root} ({files[0]}{more})"


def open_listing(
  data: DataConfig,
  split: base.Split,
  train: Callable[[], Listing],
  held_out: Callable[[], Listing] | None,
) -> base.Files | None:
  """Opens one split of a source that can list both.

  Args:
    data: `holdout` and `channels`.
    split: "train" or "eval".
    train: reads the training images.
    held_out: reads the held-out ones; None if there are none.

  Returns:
    The source; None for "eval" if there are no held-out images. Labels are
    indices into the sorted training labels, or into the data set's own classes.

  Raises:
    ConfigError: if there is no image, a label is missing, or a held-out label
      is not one of training.
  """
  base.check_color(data)
  if split == "eval" and not (data.holdout or held_out):
    return None
  first = train()
  first.check()
  names = first.classes
  if first.labels is not None and not names:
    names = class_names.sort_classes(list(first.labels))
  if first.labels is None:
    names = ()
  if split == "eval" and held_out:
    second = held_out()
    second.check()
    if second.labels is None:
      names = ()
    elif names and second.classes != first.classes:
      raise ConfigError(
        f"{second.where} has other classes than {first.where}: use parts of one"
        " data set, or set --config.data.eval_split=''"
      )
    return _source(second, names, first.where)
  if split == "train":
    alike = class_names.find_alike(names)
    if alike:
      console.warn(
        f"{first.where} has {len(names)} classes"
        f"{class_names.describe_alike(alike)}: if they are one class, give them"
        " one name",
        shared=True,
      )
  if data.holdout:
    keys = [first.key(k).encode() for k in range(len(first))]
    numbers = _numbers(first, names, first.where)
    chosen = holdout.choose(keys, numbers.tolist(), data.holdout) == (
      split == "eval"
    )
    first = first.take(np.flatnonzero(chosen))
  return _source(first, names, first.where)


def _numbers(
  listing: Listing, names: tuple[str, ...], train: str
) -> np.ndarray:
  if listing.labels is None or not names:
    return np.full(len(listing), -1, np.int64)
  if listing.classes:
    return np.asarray(listing.labels, np.int64)
  return class_names.to_numbers(
    list(listing.labels), names, listing.name, train
  )


def _source(listing: Listing, names: tuple[str, ...], train: str) -> base.Files:
  labels = _numbers(listing, names, train)
  path_table = tf.constant(list(listing.files))
  tables = {"file": listing.file, "label": labels}
  items = [labels.tobytes(), *(name.encode() for name in names)]
  if listing.offset is None or listing.length is None:
    items += (listing.key(k).encode() for k in range(len(listing)))
  else:
    tables |= {"offset": listing.offset, "length": listing.length}
    items += [listing.key(0).encode(), listing.length.tobytes()]
  constants = {k: tf.constant(v, tf.int64) for k, v in tables.items()}

  def load(index: tf.Tensor) -> base.Record:
    record = {name: table[index] for name, table in constants.items()}
    record["file"] = path_table[record["file"]]
    return record | {"id": tf.cast(index, tf.int64)}

  return base.Files(
    len(listing),
    names or None,
    load,
    {"images": len(listing), "names": base.digest(items)},
    name=listing.name,
    labels=labels.astype(np.int32) if names else None,
    where=listing.where,
  )
