"""Data sets that TFDS has prepared as TFRecord or ArrayRecord files.

TFRecord files are streams. ArrayRecord files are read at random, so that an
epoch is a permutation. Data sets of Croissant are prepared by TFDS too.

This module only reads the prepared files. It runs no code of the data set, and
downloads nothing.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.utils import file_utils

from mae_jax.config import DataConfig
from mae_jax.data.sources import base, columns
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
  builder = _builder(data)
  info = builder.info
  field = "train_split" if split == "train" else "eval_split"
  pieces = _pieces(info, getattr(data, field), f"data.{field}")
  parse, names = _parser(info, data)
  lengths = (f"{piece.skip}+{piece.take}".encode() for piece in pieces)
  identity: dict[str, int | str] = {
    "images": sum(piece.take for piece in pieces),
    "version": info.full_name,
    "shards": base.digest(lengths),
  }
  if info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
    # The order of these images is another one.
    return _files(pieces, names, parse, identity | {"format": "array_record"})
  return base.Records(
    pieces, names, parse, not info.disable_shuffling, identity
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


def _parser(
  info: Any, data: DataConfig
) -> tuple[Callable[[tf.Tensor], base.Record], tuple[str, ...] | None]:
  """Returns `parse` of `base.Records`, and the names of classes or None."""
  image = _image_feature(info, data)
  label = _label_feature(info, data)
  names = None
  wanted: dict[str, Any] = {}
  for path in filter(None, (image, label)):
    inside = wanted
    for part in path[:-1]:
      inside = inside.setdefault(part, {})
    inside[path[-1]] = True
  if label:
    feature = _feature(info, label)
    names = tuple(
      getattr(feature, "names", map(str, range(feature.num_classes)))
    )
  features = tfds.decode.PartialDecoding(wanted).extract_features(info.features)
  decoders: Any = tfds.decode.SkipDecoding()
  for part in reversed(image):
    decoders = {part: decoders}

  def parse(serialized: tf.Tensor) -> base.Record:
    example = features.deserialize_example(serialized, decoders=decoders)
    found = _get(example, label) if label else -1
    return {"image": _get(example, image), "label": tf.cast(found, tf.int64)}

  return parse, names


_Path = tuple[str, ...]


def _get(nested: Any, path: _Path) -> Any:
  return functools.reduce(lambda inside, part: inside[part], path, nested)


def _feature(info: Any, path: _Path) -> Any:
  return _get(info.features, path)


def _all_features(features: Any, above: _Path = ()) -> dict[str, _Path]:
  """Returns the paths of all features, by their names joined by "/"."""
  found: dict[str, _Path] = {}
  for name, feature in features.items():
    if isinstance(feature, tfds.features.FeaturesDict):
      found |= _all_features(feature, (*above, name))
    else:
      found["/".join((*above, name))] = (*above, name)
  return found


def _image_feature(info: Any, data: DataConfig) -> _Path:
  known = _all_features(info.features)
  images = {
    name: path
    for name, path in known.items()
    if isinstance(_feature(info, path), tfds.features.Image)
  }
  name = data.image_column
  if not name and ("image" in known or len(images) == 1):
    name = "image" if "image" in known else next(iter(images))
  if name not in images:
    raise ConfigError(
      f"data.name={data.name!r} has no image feature {name or 'image'!r} but "
      f"{columns.describe(list(known))}: set --config.data.image_column to an "
      "image, or choose a data set of images"
    )
  return images[name]


def _label_feature(info: Any, data: DataConfig) -> _Path | None:
  """Returns the path of the labels; None for none."""
  known = _all_features(info.features)
  name = data.label_column
  if name == columns.NONE:
    return None
  if name not in ("", *known):
    columns.find(list(known), name, (), "label_column", data.name)
  found = [name] if name else ["label"]
  classes = [x for x in found if x in known and _is_class(info, known[x])]
  if name and not classes:
    raise ConfigError(
      f"data.label_column={name!r} of {data.name} is "
      f"{type(_feature(info, known[name])).__name__} and no ClassLabel, so "
      "that its classes are unknown: set --config.data.label_column to another "
      f"feature, or to {columns.NONE}"
    )
  return known[classes[0]] if classes else None


def _is_class(info: Any, path: _Path) -> bool:
  return isinstance(_feature(info, path), tfds.features.ClassLabel)


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
