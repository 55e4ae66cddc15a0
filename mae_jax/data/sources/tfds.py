"""Data sets that TFDS has prepared as TFRecord files.

This module only reads the prepared files. It runs no code of the data set, and
downloads nothing.
"""

from typing import Any

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.utils import file_utils

from mae_jax.config import DataConfig
from mae_jax.data.sources import base
from mae_jax.data.tf_setup import tf
from mae_jax.utils import storage
from mae_jax.utils.errors import ConfigError


def open_prepared(data: DataConfig, split: base.Split) -> base.Records:
  """Opens one split of the data set data.name, such as "imagenet2012:5.1.0".

  Args:
    data: `data_dir` is where it was prepared ("" for TFDS's default);
      `train_split` and `eval_split` are split names or TFDS slices such as
      "train[:90%]". `channels` must be 1 or 3.
    split: "train" or "eval".

  Returns:
    A source of the feature "image" and, if the data set has it, "label".

  Raises:
    ConfigError: if the data set is not prepared, or not as TFRecord files, or
      has no such split, or no feature "image" with one image.
  """
  base.check_color(data)
  builder = _builder(data)
  info = builder.info
  field = "train_split" if split == "train" else "eval_split"
  pieces = _pieces(info, getattr(data, field), f"data.{field}")
  wanted = {"image": True} | ({"label": True} if _has_label(info) else {})
  _check_image(info, data.name)
  features = tfds.decode.PartialDecoding(wanted).extract_features(info.features)
  names = None
  if "label" in wanted:
    label = info.features["label"]
    names = tuple(getattr(label, "names", map(str, range(label.num_classes))))

  def parse(serialized: tf.Tensor) -> base.Record:
    example = features.deserialize_example(
      serialized, decoders={"image": tfds.decode.SkipDecoding()}
    )
    label = example["label"] if names else -1
    return {"image": example["image"], "label": tf.cast(label, tf.int64)}

  lengths = (f"{piece.skip}+{piece.take}".encode() for piece in pieces)
  identity = {
    "images": sum(piece.take for piece in pieces),
    "version": info.full_name,
    "shards": base.digest(lengths),
  }
  return base.Records(
    pieces, names, parse, not info.disable_shuffling, identity
  )


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
  if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
    raise ConfigError(
      f"data.name={data.name!r} is prepared in {where} as "
      f"{builder.info.file_format.value}, and tfrecord is needed: prepare it "
      "once more in another directory (TFDS keeps one format in each), with "
      f"`tfds build {data.name} --data_dir=OTHER --file_format=tfrecord`, and "
      "set --config.data.data_dir=OTHER"
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


def _has_label(info: Any) -> bool:
  return "label" in info.features and isinstance(
    info.features["label"], tfds.features.ClassLabel
  )


def _check_image(info: Any, name: str) -> None:
  if "image" not in info.features or not isinstance(
    info.features["image"], tfds.features.Image
  ):
    raise ConfigError(
      f"data.name={name!r} has no image feature 'image' but "
      f"{', '.join(info.features)}: choose a data set of labeled images"
    )


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
