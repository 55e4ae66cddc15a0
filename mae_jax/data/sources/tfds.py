"""Data sets that TFDS has prepared as TFRecord or ArrayRecord files.

TFRecord files are streams. ArrayRecord files are read at random, so that an
epoch is a permutation. Data sets of Croissant are prepared by TFDS too.

This module only reads the prepared files. It runs no code of the data set, and
downloads nothing.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.utils import file_utils

from mae_jax.config import DataConfig
from mae_jax.data import class_names, few_shot
from mae_jax.data.sources import base, columns, tfds_features
from mae_jax.data.tf_setup import tf
from mae_jax.utils import storage
from mae_jax.utils.errors import ConfigError


def open_prepared(
  data: DataConfig, split: base.Split
) -> base.Records | base.Files:
  """Opens one split of the data set data.name, such as "imagenet2012:5.1.0".

  Args:
    data: `data_dir` is where it was prepared ("" for TFDS's default);
      `train_split` and `eval_split` are split names or TFDS slices such as
      "train[:90%]". `channels` must be 1 or 3.
    split: "train" or "eval".

  Returns:
    A source of the feature "image" and, if the data set has it, "label", or of
    `data.image_column` and `data.label_column`.

  Raises:
    ConfigError: if the data set is not prepared, or not in a known file format,
      or has no such split, or no feature with one image.
  """
  base.check_color(data)
  info = _builder(data).info
  features = tfds_features.Features(info.features, data)
  source = _source(info, features, data, split)
  if not features.label or features.classes:
    return source
  train = source if split == "train" else _source(info, features, data, "train")
  return _with_classes(source, train, f"{info.full_name}, {split}", data)


def _source(
  info: Any,
  features: tfds_features.Features,
  data: DataConfig,
  split: base.Split,
) -> base.Records | base.Files:
  field = "train_split" if split == "train" else "eval_split"
  pieces = _pieces(info, getattr(data, field), f"data.{field}")
  lengths = (f"{piece.skip}+{piece.take}".encode() for piece in pieces)
  identity: dict[str, int | str] = {
    "images": sum(piece.take for piece in pieces),
    "version": info.full_name,
    "shards": base.digest(lengths),
  }
  parse, names = features.parser(), features.classes
  if info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
    # The order of these images is another one.
    return _files(pieces, names, parse, identity | {"format": "array_record"})
  return base.Records(
    pieces, names, parse, not info.disable_shuffling, identity
  )


def _with_classes(
  source: base.Records | base.Files,
  train: base.Records | base.Files,
  where: str,
  data: DataConfig,
) -> base.Records | base.Files:
  """Reads all labels, which are strings, and replaces them by numbers.

  Args:
    source: its `load` returns strings.
    train: the same for the training split, whose labels are the classes.
    where: the place of the images, for messages.
    data: `label_column`.
  """
  labels = [x.decode() for x in few_shot.read_labels(source)]
  first = labels
  if train is not source:
    first = [x.decode() for x in few_shot.read_labels(train)]
  if "" in (*labels, *first):
    raise ConfigError(
      f"images of {where} have an empty {data.label_column}: set "
      f"--config.data.label_column to another feature, or to {columns.NONE}"
    )
  names = class_names.sort_classes(first)
  numbers = class_names.to_numbers(
    labels, names, lambda index: f"{where}:{index}", data.train_split
  )
  table = tf.lookup.StaticHashTable(
    tf.lookup.KeyValueTensorInitializer(
      tf.constant(names), tf.range(len(names), dtype=tf.int64)
    ),
    default_value=-1,
  )

  def number(record: base.Record) -> base.Record:
    return record | {"label": table.lookup(record["label"])}

  items = (numbers.tobytes(), *(name.encode() for name in names))
  changes: Any = {
    "class_names": names,
    "identity": {**source.identity, "labels": base.digest(items)},
  }
  if isinstance(source, base.Records):
    parse = source.parse
    return dataclasses.replace(
      source, parse=lambda serialized: number(parse(serialized)), **changes
    )
  load = source.load
  return dataclasses.replace(
    source, load=lambda index: number(load(index)), labels=numbers, **changes
  )


def _files(
  pieces: tuple[base.Piece, ...],
  names: tuple[str, ...] | None,
  parse: Callable[[tf.Tensor], base.Record],
  identity: base.Identity,
) -> base.Files:
  """Makes a source of ArrayRecord files, whose records have an index."""
  from array_record.python import array_record_data_source

  records = array_record_data_source.ArrayRecordDataSource(
    [f"{each.path}[{each.skip}:{each.skip + each.take}]" for each in pieces]
  )
  ends = np.cumsum([piece.take for piece in pieces])

  def load(index: tf.Tensor) -> base.Record:
    found = tf.numpy_function(
      records.__getitem__, [index], tf.string, stateful=False
    )
    record = parse(tf.ensure_shape(found, []))
    return record | {"id": tf.cast(index, tf.int64)}

  def name(index: int) -> str:
    number = int(np.searchsorted(ends, index, side="right"))
    piece = pieces[number]
    return f"{piece.path}:{index - ends[number] + piece.take + piece.skip}"

  return base.Files(int(ends[-1]), names, load, identity, name=name)


def _builder(data: DataConfig) -> Any:
  where = data.data_dir or tfds.core.constants.DATA_DIR
  if not data.name:
    raise ConfigError(
      "data.name is empty: set --config.data.name to a data set that TFDS has "
      f"prepared in {where}"
    )
  try:
    # tfds.builder might ask a server about a data set that is not on disk.
    builder = tfds.core.read_only_builder.builder_from_files(
      data.name, data_dir=data.data_dir or None
    )
  except (tfds.core.DatasetNotFoundError, ValueError) as error:
    if isinstance(error, ValueError) and "multiple" in str(error):
      raise ConfigError(f"data.name={data.name!r}: {error}") from error
    raise ConfigError(
      f"data.name={data.name!r} is not prepared in {where}: set "
      "--config.data.data_dir to where it is, or prepare it with "
      f"`tfds build {data.name} --data_dir={where}`"
    ) from error
  known = tfds.core.FileFormat.TFRECORD, tfds.core.FileFormat.ARRAY_RECORD
  if builder.info.file_format not in known:
    raise ConfigError(
      f"data.name={data.name!r} is prepared in {where} as "
      f"{builder.info.file_format.value}, and array_record or tfrecord is "
      "needed: prepare it once more in another directory (TFDS keeps one format"
      f" in each), with `tfds build {data.name} --data_dir=OTHER "
      "--file_format=array_record`, and set --config.data.data_dir=OTHER"
    )
  return builder


def _pieces(info: Any, split: str, field: str) -> tuple[base.Piece, ...]:
  try:
    instructions = info.splits[split].file_instructions
  except (KeyError, ValueError, AssertionError) as error:
    counts = ", ".join(
      f"{name} ({part.num_examples} examples)"
      for name, part in info.splits.items()
    )
    raise ConfigError(
      f"{field}={split!r} is not a split of {info.full_name}: it has {counts}; "
      f"set --config.{field} to one of them"
    ) from error
  pieces = tuple(
    base.Piece(str(each.filename), each.skip, each.take)
    for each in instructions
    if each.take
  )
  if not pieces:
    raise ConfigError(
      f"{field}={split!r} of {info.full_name} has no example: choose another "
      f"of {', '.join(info.splits)}"
    )
  return pieces


def prepared_configs(data: DataConfig) -> tuple[str, ...]:
  """Lists the configs of a data set that are prepared in data.data_dir.

  Args:
    data: `name` is a data set that has configs, with or without a version;
      `data_dir` is "" for TFDS's default.

  Raises:
    ConfigError: if no config is prepared.
  """
  name, _, version = data.name.partition(":")
  directories = file_utils.list_data_dirs(data.data_dir or None)
  with storage.os_errors(data.data_dir):
    found = {
      each.config
      for directory in directories
      for each in file_utils.list_dataset_variants(epath.Path(directory) / name)
      if each.config and version in ("", str(each.version))
    }
  if not found:
    where = ", ".join(map(str, directories))
    raise ConfigError(
      f"data.name={data.name!r}: none of its configs is prepared in {where}: "
      "set --config.data.data_dir to where they are, or prepare each with "
      f"`tfds build {name}/CONFIG --data_dir={directories[0]}`"
    )
  return tuple(sorted(found))
