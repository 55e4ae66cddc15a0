"""Tables in .csv and .parquet files, written a part at a time."""

import contextlib
import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, Protocol

import numpy as np

from mae_jax.utils import atomic_write

SUFFIXES = (".csv", ".parquet")
_GROUP_BYTES = 2**26  # of a row group of Parquet, in memory

Columns = Mapping[str, Sequence[Any] | np.ndarray]


class Table(Protocol):
  """A table that grows."""

  def add(self, columns: Columns) -> None:
    """Adds rows: columns by name, of equal length, the same in each call."""


def check(path: str, suffixes: Sequence[str] = SUFFIXES) -> None:
  """Checks the path of --out before any work.

  Raises:
    ConfigError: if it does not end in one of `suffixes`.
    ModuleNotFoundError: if it ends in .parquet and pyarrow is missing.
  """
  atomic_write.check_suffix(path, *suffixes)
  if path.endswith(".parquet"):
    importlib.import_module("pyarrow")


@contextlib.contextmanager
def write(file: IO[bytes], path: str) -> Iterator[Table]:
  """Opens a table, which is complete when the block ends.

  Args:
    file: an open file; in a bucket it cannot seek.
    path: its name, which ends in one of SUFFIXES.
  """
  table = _Parquet(file) if path.endswith(".parquet") else _Csv(file)
  yield table
  table.finish()


class _Csv:
  """Rows as text. Names that are not UTF-8 keep their original bytes."""

  def __init__(self, file: IO[bytes]):
    self._file = file
    self._names: tuple[str, ...] = ()

  def add(self, columns: Columns) -> None:
    if not self._names:
      self._names = tuple(columns)
      self._file.write(atomic_write.csv_rows([self._names]))
    rows = zip(*columns.values(), strict=True)
    self._file.write(atomic_write.csv_rows(rows))

  def finish(self) -> None:
    pass


class _Parquet:
  """Columns of Arrow; arrays [n, D] become lists of a fixed size."""

  def __init__(self, file: IO[bytes]):
    import pyarrow as pa
    from pyarrow import parquet

    self._pa, self._parquet, self._file = pa, parquet, file
    self._writer: Any = None
    self._waiting: list[Any] = []

  def add(self, columns: Columns) -> None:
    arrays = {name: self._array(each) for name, each in columns.items()}
    self._waiting.append(self._pa.table(arrays))
    if sum(each.nbytes for each in self._waiting) > _GROUP_BYTES:
      self._flush()

  def finish(self) -> None:
    self._flush()
    if self._writer is not None:
      self._writer.close()

  def _flush(self) -> None:
    if self._waiting:
      table = self._pa.concat_tables(self._waiting)
      self._writer = self._writer or self._parquet.ParquetWriter(
        self._file, table.schema
      )
      self._writer.write_table(table)
      self._waiting = []

  def _array(self, values: Sequence[Any] | np.ndarray) -> Any:
    if isinstance(values, np.ndarray) and values.ndim == 2:
      flat = self._pa.array(values.reshape(-1))
      return self._pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    if isinstance(values, np.ndarray):
      return self._pa.array(values)
    return self._pa.array(
      [
        os.fsencode(each).decode(errors="backslashreplace")
        if isinstance(each, str)
        else each
        for each in values
      ]
    )
