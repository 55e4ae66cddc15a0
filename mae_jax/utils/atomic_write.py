"""Files that a tool writes while it works, and that are whole or not there.

What is written goes to a temporary file beside the one that is wanted, which
it replaces at the end. Arrays are written as they come, so that memory does
not grow with their number.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any, cast

import numpy as np
from etils import epath

from mae_jax.utils import signals, storage
from mae_jax.utils.errors import ConfigError


def check_suffix(path: str, suffix: str) -> None:
  """Raises ConfigError unless the path of --out ends in `suffix`."""
  if not path.endswith(suffix):
    raise ConfigError(
      f"--out={path} does not end in {suffix}: name such a file, as "
      f"{os.path.splitext(path)[0] or 'out'}{suffix}"
    )


def write_rows(file: IO[bytes], rows: Iterable[Sequence[Any]]) -> None:
  """Writes rows of a .csv file."""
  text = io.StringIO()
  csv.writer(text, lineterminator="\n").writerows(rows)
  # A file name may be bytes that are no UTF-8: then the very same.
  file.write(text.getvalue().encode("utf-8", "surrogateescape"))


@contextlib.contextmanager
def atomic_file(path: str, flag: str = "--out") -> Iterator[IO[bytes]]:
  """Opens a file to be written, which appears when the block ends well.

  Args:
    path: on a disk or in a bucket; its folder is made. What lies there is
      replaced at the end, and stays as it is if the block raises.
    flag: what the user calls it.

  Yields:
    What `write` is called of; in a bucket it cannot seek.

  Raises:
    ConfigError: before the block, if the file cannot be written.
    OSError: with the path, when that turns out later.
  """
  out = storage.absolute(path)
  with _temporary_path(out, flag) as temporary:
    try:
      _check_writable(out, temporary)
    except OSError as error:
      raise ConfigError(
        f"{flag}={path} cannot be written ({error.strerror or error}): name a "
        "file in a folder that may be written"
      ) from error
    with _errors_name_path(out):
      with temporary.open("wb") as file:
        remote = storage.is_remote(out)
        yield cast(IO[bytes], _Unseekable(file) if remote else file)
      temporary.replace(out)


@contextlib.contextmanager
def atomic_folder(
  path: str, mine: Callable[[epath.Path], bool], flag: str = "--out"
) -> Iterator[epath.Path]:
  """Makes a folder to be filled, which appears when the block ends well.

  Args:
    path: on a disk; the folder above it is made. An empty folder there, or one
      of the same kind, is replaced at the end, and stays as it is if the block
      raises.
    mine: whether a folder is of that kind, and has nothing else in it.
    flag: what the user calls it.

  Yields:
    The folder to fill, which lies beside it.

  Raises:
    ConfigError: before the block, if the folder cannot be made or replaced.
    OSError: with a path, when that turns out later.
  """
  out = storage.absolute(path)
  if storage.is_remote(out):
    raise ConfigError(
      f"{flag}={path} is in a bucket, where a folder cannot appear as a whole: "
      "name one on a disk, and copy it (gcloud storage cp -r)"
    )
  # A link stays, and what it points to is replaced.
  out = epath.Path(os.path.realpath(out))
  here = os.path.join(os.path.realpath(os.getcwd()), "")
  if here.startswith(os.path.join(out, "")):
    raise ConfigError(
      f"{flag}={path} is the folder that this command runs in, or one above: "
      "name another"
    )
  _check_replaceable(path, mine, flag)
  with _temporary_path(out, flag) as temporary:
    try:
      temporary.mkdir()
    except OSError as error:
      raise ConfigError(
        f"{flag}={path} cannot be written ({error.strerror or error}): name a "
        "folder in one that may be written"
      ) from error
    with _errors_name_path(out):
      yield temporary
      _check_replaceable(path, mine, flag)  # the block may have taken long
      with signals.no_exit():
        _swap(temporary, out)


@contextlib.contextmanager
def _temporary_path(out: epath.Path, flag: str) -> Iterator[epath.Path]:
  """Makes the folder of `out`; yields the temporary path to write to.

  The end of the block, or a signal, removes this path and the new folders that
  are still empty.
  """
  temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")
  above = () if storage.is_remote(out) else (out.parent, *out.parent.parents)
  made = [folder for folder in above if not folder.exists()]

  def remove() -> None:
    with contextlib.suppress(OSError), storage.os_errors(temporary):
      if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
      else:
        temporary.unlink(missing_ok=True)
    for folder in made:
      with contextlib.suppress(OSError):  # it is not empty
        os.rmdir(folder)

  with signals.cleanup(remove):
    storage.make_directory(out.parent, f"the folder of {flag}")
    yield temporary


def _check_replaceable(
  path: str, mine: Callable[[epath.Path], bool], flag: str
) -> None:
  out = storage.absolute(path)
  if not out.exists():
    return
  if not out.is_dir() or (any(out.iterdir()) and not mine(out)):
    what = "holds other things" if out.is_dir() else "is a file"
    raise ConfigError(
      f"{flag}={path} {what}, and is not touched: name a folder that is not "
      "there, or one that this command made"
    )


def _swap(new: epath.Path, out: epath.Path) -> None:
  """Puts `new` in the place of `out`, where there may be a folder."""
  if not out.exists():
    new.rename(out)
    return
  old = new.with_suffix(".old")
  out.rename(old)
  try:
    new.rename(out)
  except BaseException:
    old.rename(out)
    raise
  shutil.rmtree(old, ignore_errors=True)


def check_space(path: str, wanted: int) -> None:
  """Refuses to begin what a disk has no room for.

  Args:
    path: of the file, in a folder that is there.
    wanted: bytes.

  Raises:
    ConfigError: with both numbers.
  """
  out = storage.absolute(path)
  if storage.is_remote(out):
    return
  free = shutil.disk_usage(out.parent).free
  if wanted > free:
    raise ConfigError(
      f"--out={path} takes {wanted / 1e9:.1f} GB, and its disk has "
      f"{free / 1e9:.1f} GB: name a file on another disk, or make it smaller"
    )


class NpzWriter:
  """An .npz file as `np.savez` makes it, of arrays that come in parts."""

  def __init__(self, file: IO[bytes]):
    """Nothing is written yet to `file`, which is open."""
    self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)

  def __enter__(self) -> NpzWriter:
    return self

  def __exit__(self, *error: Any) -> None:
    self._zip.close()

  def add(
    self,
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    parts: Iterable[np.ndarray],
  ) -> None:
    """Writes one array.

    Args:
      name: its key.
      shape: of the whole.
      dtype: likewise.
      parts: [n, ...] pieces in order, whose n add up to shape[0].
    """
    header = {
      "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
      "fortran_order": False,
      "shape": shape,
    }
    # Sizes are written first and are not known to the writer: zip64 for all.
    with self._zip.open(f"{name}.npy", "w", force_zip64=True) as member:
      np.lib.format.write_array_header_1_0(member, header)
      written = 0
      for part in parts:
        member.write(np.ascontiguousarray(part, dtype).tobytes())
        written += part.size
    assert written == math.prod(shape), (name, written, shape)


class _Unseekable:
  """A bucket's file as zipfile wants one that cannot seek."""

  def __init__(self, file: Any):
    self._file = file

  def write(self, data: bytes) -> int:
    self._file.write(bytes(data))
    return len(data)

  def flush(self) -> None:
    """All goes to the bucket when the file is closed."""


def _check_writable(out: epath.Path, temporary: epath.Path) -> None:
  with storage.os_errors(out):
    if out.is_dir():
      raise IsADirectoryError(None, "it is a folder")
    temporary.write_bytes(b"")


@contextlib.contextmanager
def _errors_name_path(out: epath.Path) -> Iterator[None]:
  """Says of an error of writing which file it is about."""
  try:
    with storage.os_errors(out):
      yield
  except OSError as error:
    if error.filename is not None or error.errno is None:
      raise
    raise OSError(error.errno, error.strerror, os.fspath(out)) from error
