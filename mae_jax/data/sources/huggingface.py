"""Hugging Face data sets on disk: arrow files, or parquet shards.

`save_to_disk` writes arrow files, in which the bytes of each image have a
place. Only their offsets are read here, from a memory map; images are read at
random as parts of files. The library `datasets` is not needed.

Parquet is compressed and has no such places. Its images are written once to
arrow files in the cache.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from mae_jax.config import DataConfig
from mae_jax.data import listing as file_listing
from mae_jax.data import splits
from mae_jax.data.sources import base, columns, listed
from mae_jax.utils import console, errors
from mae_jax.utils.errors import ConfigError, abbreviate

_STATE = "state.json"  # of `save_to_disk`, beside its arrow files
_BATCH_ROWS = 64  # of parquet, decompressed at a time


def open_saved(data: DataConfig, split: base.Split) -> base.Files | None:
  """Opens the images of one split, in the order of the files and rows.

  Args:
    data: `path` is a folder of `save_to_disk`, or a file or folder of parquet
      shards as on the Hub. `image_column` and `label_column` are found by type
      and well-known names if they are "".
    split: "train" or "eval".

  Returns:
    The source; None for "eval" if there are no held-out images. Classes are the
    names of a ClassLabel, or the sorted training labels.

  Raises:
    ConfigError: if there is no file, one cannot be read, or has no images.
  """
  splits.refuse_remote(data)
  errors.require(["pyarrow"])
  root, files = _find_shards(data)
  parts = [
    [files[k] for k in part]
    for part in splits.choose(files, data, os.fspath(root))
  ]
  train, held_out = (
    lambda part=part: _read(root, part, data) for part in parts
  )
  return listed.open_listing(data, split, train, held_out if parts[1] else None)


def _find_shards(data: DataConfig) -> tuple[epath.Path, list[str]]:
  root, files = splits.find_files(
    data,
    [_STATE, ".arrow", ".parquet"],
    "a folder of `save_to_disk`, or a file or folder of parquet shards",
  )
  if not files[0].endswith(_STATE):
    return root, files
  found = []
  for file in files:
    # Older shards and caches of `map` may lie beside those of the data set.
    state = json.loads((root / file).read_text())
    if state.get("_indices_data_files"):
      raise ConfigError(
        f"{root / file} is of an old version of datasets: load it, and save it "
        "again with save_to_disk"
      )
    names = [each["filename"] for each in state["_data_files"]]
    found += [os.path.join(os.path.dirname(file), name) for name in names]
  return root, found


def _read(
  root: epath.Path, files: Sequence[str], data: DataConfig
) -> listed.Listing:
  import pyarrow

  folders = {os.path.dirname(file) for file in files}
  if len(folders) > 1:
    raise ConfigError(
      f"{root} has images for one split in the folders "
      f"{columns.describe(sorted(folders))}: set --config.data.path to one of "
      "them"
    )
  first: _Columns | None = None
  paths, places, labels = [], [], []
  for file in files:
    path = os.fspath(root / file)
    try:
      shard = _open(path)
      found = _Columns(shard.schema, data, path)
      if first is not None and found.key != first.key:
        raise ConfigError(
          f"{path} has other columns or classes than {root / files[0]}: use "
          "shards of one data set"
        )
      first = first or found
      arrow = path
      if path.endswith(".parquet"):
        arrow = _to_arrow(path, found.image)
      paths.append(arrow)
      places.append(_places(arrow, found.image))
      if found.label:
        labels += shard.labels(found.label)
    except (pyarrow.ArrowException, OSError) as error:
      if isinstance(error, OSError) and error.filename:
        raise
      raise ConfigError(
        f"{path} cannot be read ({abbreviate(str(error))}): copy it again"
      ) from error
  assert first is not None
  counts = [len(each) for each in places]
  shard_of = np.repeat(np.arange(len(files)), counts)
  start = np.cumsum(counts) - counts
  offset, length = np.concatenate(places).T
  if len(length) and not length.any():
    raise ConfigError(
      f"{root / files[0]} has paths of images and not their bytes: load it, and"
      " save it again with datasets' save_to_disk"
    )

  def key(index: int) -> str:
    number = shard_of[index]
    return f"{os.path.basename(files[number])}:{index - start[number]}"

  return listed.Listing(
    paths,
    shard_of,
    lambda k: os.path.join(root, os.path.dirname(files[0]), key(k)),
    key,
    _labels(labels, first),
    listed.describe(root, files),
    first.classes,
    offset,
    length,
  )


def _labels(values: list[Any], found: "_Columns") -> Any:
  if not found.label:
    return None
  if found.classes:
    numbers = np.array([-1 if x is None else int(x) for x in values], np.int64)
    return numbers if (numbers >= 0).any() else None
  texts = ["" if x is None else str(x).strip() for x in values]
  return texts if any(texts) else None


class _Columns:
  """The columns of images and labels of one file.

  Attributes:
    image: name of the column.
    label: name of the column; None for none.
    classes: names of a ClassLabel; () if it is none.
  """

  def __init__(self, schema: Any, data: DataConfig, where: str):
    features = _features(schema)
    kinds = {name: schema.field(name).type for name in schema.names}
    known = [
      x for x in schema.names if features.get(x, {}).get("_type") == "Image"
    ]
    known = known or [x for x in schema.names if _has_bytes(kinds[x])]
    image = columns.find(
      schema.names,
      data.image_column,
      [x.lower() for x in known],
      "image_column",
      where,
    )
    if image is None or not _has_bytes(kinds[image]):
      raise ConfigError(
        f"{where} has no column of image bytes but {_describe(kinds)}: set "
        "--config.data.image_column, or data.source=table for paths of images"
      )
    self.image = image
    self.label = columns.find(
      schema.names,
      data.label_column,
      columns.LABELS,
      "label_column",
      where,
    )
    feature = features.get(self.label or "", {})
    self.classes: tuple[str, ...] = ()
    if self.label and feature.get("_type") == "ClassLabel":
      self.classes = tuple(feature["names"])
    elif self.label and not _is_scalar(kinds[self.label]):
      raise ConfigError(
        f"the column {self.label} of {where} has values of type "
        f"{kinds[self.label]}: one label an image is needed; set "
        "--config.data.label_column to another column, or to "
        f"{columns.NONE}"
      )
    self.key = (self.image, self.label, self.classes)


def _describe(kinds: dict[str, Any]) -> str:
  return columns.describe([f"{name} ({kind})" for name, kind in kinds.items()])


def _features(schema: Any) -> dict[str, Any]:
  """Returns the features that `datasets` notes in a file; {} without them."""
  try:
    text = (schema.metadata or {})[b"huggingface"]
    return dict(json.loads(text)["info"]["features"])
  except (KeyError, TypeError, ValueError):
    return {}


def _has_bytes(kind: Any) -> bool:
  import pyarrow

  if pyarrow.types.is_struct(kind):
    names = [field.name for field in kind]
    return "bytes" in names and _has_bytes(kind.field("bytes").type)
  return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def _is_scalar(kind: Any) -> bool:
  import pyarrow

  return not pyarrow.types.is_nested(kind) and not _has_bytes(kind)


def _open(path: str) -> "_Arrow | _Parquet":
  return _Parquet(path) if path.endswith(".parquet") else _Arrow(path)


class _Parquet:
  """A parquet file, for its schema and labels."""

  def __init__(self, path: str):
    from pyarrow import parquet

    self._file = parquet.ParquetFile(path)
    self.schema = self._file.schema_arrow

  def labels(self, name: str) -> list[Any]:
    """Reads one column."""
    return list(self._file.read(columns=[name])[name].to_pylist())


class _Arrow:
  """An arrow file or stream, mapped into memory."""

  def __init__(self, path: str):
    import pyarrow

    self.memory = pyarrow.memory_map(path)
    ipc = pyarrow.ipc
    is_file = self.memory.read(6) == b"ARROW1"
    self.memory.seek(0)
    reader = (ipc.open_file if is_file else ipc.open_stream)(self.memory)
    self.schema = reader.schema
    if is_file:
      self._batches = [
        reader.get_batch(k) for k in range(reader.num_record_batches)
      ]
    else:
      self._batches = list(reader)

  def columns(self, name: str) -> Iterator[Any]:
    """Yields one column, batch by batch."""
    index = self.schema.names.index(name)
    return (batch.column(index) for batch in self._batches)

  def labels(self, name: str) -> list[Any]:
    """Reads one column."""
    return [value for part in self.columns(name) for value in part.to_pylist()]


def _places(path: str, image: str) -> np.ndarray:
  """Returns offset and length of each image's bytes, int64 [N, 2]."""
  import pyarrow

  file = _Arrow(path)
  file.memory.seek(0)
  whole = file.memory.read_buffer()
  places = [np.zeros((0, 2), np.int64)]
  for column in file.columns(image):
    if pyarrow.types.is_struct(column.type):
      column = column.field("bytes")
    is_large = pyarrow.types.is_large_binary(column.type)
    _, ends, content = column.buffers()
    if not len(column):
      continue
    all_ends = np.frombuffer(ends, np.int64 if is_large else np.int32)
    ends = all_ends[column.offset : column.offset + len(column) + 1]
    ends = ends.astype(np.int64)
    begin = (content.address - whole.address) if content else 0
    if not 0 <= begin <= whole.size - int(ends[-1]):
      raise ConfigError(
        f"{path} is compressed: load it, and save it again with save_to_disk"
      )
    places.append(np.stack([begin + ends[:-1], np.diff(ends)], axis=1))
  return np.concatenate(places)


def _to_arrow(path: str, image: str) -> str:
  """Writes the images of a parquet file to the cache, unless they are there."""
  import pyarrow
  from pyarrow import parquet

  status = os.stat(path)
  name = (os.path.abspath(path), status.st_size, status.st_mtime_ns, image)
  target = file_listing.cache_file("parquet", json.dumps(name), ".arrow")
  target.parent.mkdir(parents=True, exist_ok=True)
  # Processes of one host wait for the first one.
  with open(f"{target}.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if target.exists():
      return os.fspath(target)
    source = parquet.ParquetFile(path)
    temporary = Path(f"{target}.tmp")
    progress = console.progress_bar(
      source.metadata.num_rows, desc=f"unpacking {os.path.basename(path)}",
      leave=False, delay=2,
    )  # fmt: skip
    batches = source.iter_batches(_BATCH_ROWS, columns=[image])
    schema = pyarrow.schema([source.schema_arrow.field(image)])
    with (
      progress,
      pyarrow.OSFile(os.fspath(temporary), "wb") as sink,
      pyarrow.ipc.new_stream(sink, schema) as writer,
    ):
      for batch in batches:
        writer.write_batch(batch)
        progress.update(len(batch))
    os.replace(temporary, target)
  return os.fspath(target)
