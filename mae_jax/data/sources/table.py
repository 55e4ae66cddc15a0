"""A table of paths of image files, and of labels if there are any.

The table is a CSV or TSV file with a header, or a parquet file. Paths are
relative to the table's folder.
"""

import csv
import dataclasses
import io
import os
from collections.abc import Iterator

import numpy as np
from etils import epath

from mae_jax.config import DataConfig
from mae_jax.data import splits
from mae_jax.data.sources import base, columns, listed
from mae_jax.utils import console, errors, storage
from mae_jax.utils.errors import ConfigError, abbreviate

_SUFFIXES = (".csv", ".tsv", ".parquet")
_SPLIT = "split"  # the column that divides one table
_NUM_CHECKED = 64  # files whose existence is checked


def open_table(data: DataConfig, split: base.Split) -> base.Files | None:
  """Opens the images of one split, in the order of the table.

  Args:
    data: `path` is a table, or a folder with one for each split;
      `image_column` and `label_column` are found by well-known names if they
      are "". A column "split" divides a single table.
    split: "train" or "eval".

  Returns:
    The source; None for "eval" if there are no held-out images.

  Raises:
    ConfigError: if there is no table, it is malformed, or its files are
      missing.
  """
  root, files = splits.find_files(
    data, _SUFFIXES, "a table of paths (.csv, .tsv or .parquet)"
  )
  if len(files) == 1 and (table := _read(root, files, data)).splits:
    tables = table.divide(data)
  else:
    parts = splits.choose(files, data, str(root))
    tables = [_read(root, [files[k] for k in x], data) for x in parts if x]
  return listed.open_listing(
    data,
    split,
    lambda: tables[0].listing(data, warn=split == "train"),
    (lambda: tables[1].listing(data)) if len(tables) > 1 else None,
  )


@dataclasses.dataclass(frozen=True)
class _Table:
  """The rows of one split.

  Attributes:
    where: the tables' paths.
    rows: "file:line" of each row.
    paths: of images, as they are written.
    labels: as they are written; None if there are none.
    splits: the cells of the column "split"; None if there is none.
    folders: what paths are relative to, for each row.
  """

  where: str
  rows: list[str]
  paths: list[str]
  labels: list[str] | None
  splits: list[str] | None
  folders: list[str]

  def divide(self, data: DataConfig) -> list["_Table"]:
    """Returns the training rows, and the held-out ones if there are any."""
    assert self.splits
    names = sorted(set(self.splits))
    where = f"the column {_SPLIT} of {self.where}"
    parts = splits.choose(names, data, where)
    tables = []
    for part in filter(None, parts):
      values = {names[k] for k in part}
      keep = [k for k, value in enumerate(self.splits) if value in values]
      text = f"{self.where} ({_SPLIT}={', '.join(sorted(values))})"
      tables.append(self._take(keep, text))
    return tables

  def _take(self, keep: list[int], where: str) -> "_Table":
    def pick(values: list[str]) -> list[str]:
      return [values[k] for k in keep]

    labels = None if self.labels is None else pick(self.labels)
    if labels and not any(labels):
      labels = None
    return _Table(
      where, pick(self.rows), pick(self.paths), labels, None, pick(self.folders)
    )

  def listing(self, data: DataConfig, warn: bool = True) -> listed.Listing:
    """Returns the images, after a look at some of their files."""
    files = [
      path if "://" in path else os.path.join(folder, path)
      for folder, path in zip(self.folders, self.paths, strict=True)
    ]
    warnings = [self._check_repeats(data), self._check_files(files)]
    for text in filter(None, warnings if warn else ()):
      console.warn(text, shared=True)
    labels = self.labels

    def name(index: int) -> str:
      return files[index] if files[index].isprintable() else repr(files[index])

    if labels is not None and not all(labels):
      first = labels.index("")
      raise ConfigError(
        f"{self.rows[first]} has no label, as {labels.count(''):,} of "
        f"{len(labels):,} rows: fill the cells, remove the rows, or set "
        f"--config.data.label_column={columns.NONE} for images without labels"
      )
    return listed.Listing(
      files,
      np.arange(len(files)),
      name,
      self.paths.__getitem__,
      labels,
      self.where,
    )

  def _check_repeats(self, data: DataConfig) -> str:
    """Returns a warning of repeated images; refuses them with two labels."""
    first: dict[tuple[str, str], int] = {}
    repeats = 0
    for row, place in enumerate(zip(self.folders, self.paths, strict=True)):
      before = first.setdefault(place, row)
      repeats += before != row
      if self.labels and self.labels[before] != self.labels[row]:
        raise ConfigError(
          f"{self.paths[row]} has the label {abbreviate(self.labels[before])} "
          f"in {self.rows[before]} and {abbreviate(self.labels[row])} in "
          f"{self.rows[row]}: give each image one label"
        )
    if repeats and data.holdout:
      raise ConfigError(
        f"{repeats:,} rows of {self.where} repeat an image, which "
        f"data.holdout={data.holdout:g} may put on both sides: remove them, or "
        "set --config.data.holdout=0"
      )
    if not repeats:
      return ""
    return (
      f"{repeats:,} rows of {self.where} repeat an image, which counts as "
      "often as it is named"
    )

  def _check_files(self, files: list[str]) -> str:
    """Returns a warning of missing files; refuses many of them."""
    chosen = np.unique(
      np.linspace(0, len(files) - 1, min(_NUM_CHECKED, len(files))).astype(int)
    )
    missing = [k for k in chosen if not _exists(files[k])]
    if not missing:
      return ""
    text = (
      f"{len(missing)} of {len(chosen)} files that were looked for do not "
      f"exist, as {abbreviate(files[missing[0]])} of {self.rows[missing[0]]}"
    )
    if 2 * len(missing) > len(chosen):
      raise ConfigError(
        f"{text}: write paths relative to the table's folder, or move the "
        "table beside its images"
      )
    return f"{text}; they count as unreadable images"


def _exists(path: str) -> bool:
  try:
    remote = storage.is_remote(path)
    return epath.Path(path).exists() if remote else os.path.exists(path)
  except (ValueError, KeyError):  # a NUL, or an unknown scheme
    return False


def _read(root: epath.Path, files: list[str], data: DataConfig) -> _Table:
  """Reads the tables of one split, one after the other."""
  stems = {splits.without_number(file.partition(".")[0]) for file in files}
  if len(stems) > 1:
    raise ConfigError(
      f"{root} has more than one table for one split: {', '.join(files)}; set "
      "--config.data.path to one of them, or name them train and val"
    )
  parts = [_read_one(root / file, data) for file in files]
  first = parts[0]
  if len(parts) == 1:
    return first
  for other in parts[1:]:
    for name in ("labels", "splits"):
      if (getattr(other, name) is None) != (getattr(first, name) is None):
        raise ConfigError(
          f"{other.where} and {first.where} have different columns of {name}: "
          "write the same header in both"
        )
  where = f"{first.where} and {len(parts) - 1} more"
  joined = {
    field.name: None
    if getattr(first, field.name) is None
    else [value for part in parts for value in getattr(part, field.name)]
    for field in dataclasses.fields(_Table)[1:]
  }
  return _Table(where, **joined)  # type: ignore[arg-type]


def _read_one(path: epath.Path, data: DataConfig) -> _Table:
  if path.name.lower().endswith(".parquet"):
    header, rows = _read_parquet(path, data)
  else:
    header, rows = _read_text(path)
  image, label, split = _find_columns(header, data, str(path))
  names, cells = [], []
  for number, row in rows:
    if len(row) != len(header):
      raise ConfigError(
        f"{path}:{number} has {len(row)} cells and the header {len(header)}: "
        "write one cell for each column, with quotes around commas"
      )
    names.append(f"{path}:{number}")
    cells.append(
      [row[k].strip() if k >= 0 else "" for k in (image, label, split)]
    )
    if not cells[-1][0] or "\0" in cells[-1][0]:
      raise ConfigError(
        f"{path}:{number} has no path in the column {header[image]!r}: fill the"
        " cell, or remove the row"
      )
  images, labels, values = (
    map(list, zip(*cells, strict=True)) if cells else ([], [], [])
  )
  return _Table(
    str(path),
    names,
    images,
    labels if label >= 0 and any(labels) else None,
    values if split >= 0 else None,
    [os.path.dirname(os.fspath(path))] * len(names),
  )


def _find_columns(
  header: list[str], data: DataConfig, where: str
) -> tuple[int, int, int]:
  """Returns the columns of images, labels (-1 for none) and splits."""
  image = columns.find(
    header, data.image_column, columns.IMAGES, "image_column", where
  )
  if image is None:
    raise ConfigError(
      f"{where} has no column of paths among {columns.describe(header)}: begin "
      f"it with a header such as image,label, or set --config.data.image_column"
    )
  label = columns.find(
    header, data.label_column, columns.LABELS, "label_column", where
  )
  split = columns.find(header, "", (_SPLIT,), "label_column", where)
  return (
    header.index(image),
    -1 if label is None else header.index(label),
    -1 if split is None else header.index(split),
  )


def _read_text(
  path: epath.Path,
) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
  """Returns the header, and rows with the numbers of their lines."""
  try:
    text = path.read_bytes().decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise ConfigError(
      f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as "
      "CSV in UTF-8"
    ) from error
  # Excel writes semicolons where the comma is the decimal sign.
  first = text.lstrip().partition("\n")[0]
  delimiter = max(",\t;", key=first.count)
  reader = csv.reader(
    io.StringIO(text, newline=""), delimiter=delimiter, strict=True
  )

  def rows() -> Iterator[tuple[int, list[str]]]:
    try:
      for row in reader:
        if any(cell.strip() for cell in row):
          yield reader.line_num, row
    except csv.Error as error:
      raise ConfigError(
        f"{path}:{reader.line_num} is no row of a table ({error}): check the "
        "quotes in this row and before it"
      ) from error

  found = rows()
  _, header = next(found, (0, []))
  return [name.strip() for name in header], found


def _read_parquet(
  path: epath.Path, data: DataConfig
) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
  """Returns the columns that are needed, and rows with their numbers."""
  errors.require(["pyarrow"])
  import pyarrow
  from pyarrow import parquet

  try:
    file = parquet.ParquetFile(pyarrow.BufferReader(path.read_bytes()))
    schema = file.schema_arrow
    places = _find_columns(schema.names, data, str(path))
    header = [schema.names[k] for k in places if k >= 0]
    for name in header:
      kind = schema.field(name).type
      if pyarrow.types.is_nested(kind) or pyarrow.types.is_binary(kind):
        raise ConfigError(
          f"the column {name} of {path} has values of type {kind}, not one "
          "path or label an image: set --config.data.source=huggingface for "
          "images in the file itself, or data.image_column and "
          "data.label_column to other columns"
        )
    table = file.read(columns=header)
  except pyarrow.ArrowException as error:
    raise ConfigError(
      f"{path} cannot be read ({errors.abbreviate(str(error))}): replace it by "
      "a whole parquet file"
    ) from error
  cells = [table[name].to_pylist() for name in header]
  rows = (
    (k, ["" if cell is None else str(cell) for cell in row])
    for k, row in enumerate(zip(*cells, strict=True), 1)
  )
  return header, rows
