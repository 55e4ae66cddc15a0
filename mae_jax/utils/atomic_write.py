"""Output files and folders of tools, which appear complete or not at all.

A tool writes to a temporary file beside its output, and replaces the output at
the end. Arrays are written as they arrive, so memory does not grow with their
number.
"""

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


def check_suffix(path: str, *suffixes: str) -> None:
  """Raises ConfigError unless the path of --out ends in one of `suffixes`."""
  if not path.endswith(suffixes):
    raise ConfigError(
      f"--out={path} does not end in {' or '.join(suffixes)}: name a file that "
      f"does, such as {os.path.splitext(path)[0] or 'out'}{suffixes[0]}"
    )


def csv_rows(
  rows: Iterable[Sequence[Any]], errors: str = "surrogateescape"
) -> bytes:
  """Formats rows of a .csv file.

  Args:
    rows: the cells of each row.
    errors: how names that are not UTF-8 are encoded; by default with their
      original bytes.
  """
  text = io.StringIO()
  csv.writer(text, lineterminator="\n").writerows(rows)
  return text.getvalue().encode("utf-8", errors)


@contextlib.contextmanager
def atomic_file(path: str, flag: str = "--out") -> Iterator[IO[bytes]]:
  """Opens a file for writing, which appears when the block ends without error.

  Args:
    path: on a disk or in a bucket; its folder is made. An existing file is
      replaced at the end, and stays unchanged if the block raises.
    flag: the user's name for the path, for messages.

  Yields:
    The open file; in a bucket it cannot seek.

  Raises:
    ConfigError: before the block, if the file cannot be written.
    OSError: with the path, if writing fails later.
  """
  out = storage.absolute(path)
  with _temporary_path(out, flag) as temporary:
    try:
      with storage.os_errors(out):
        if out.is_dir():
          raise IsADirectoryError(None, "it is a folder")
        temporary.write_bytes(b"")
    except OSError as error:
      raise ConfigError(
        f"{flag}={path} cannot be written ({error.strerror or error}): name a "
        "file in a writable folder"
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
  """Makes a folder to fill, which appears when the block ends without error.

  Args:
    path: on a disk; the folder above it is made. An empty folder, or one for
      which `mine` is true, is replaced at the end, and stays unchanged if the
      block raises.
    mine: checks whether a folder was made by this tool and has no other files.
    flag: the user's name for the path, for messages.

  Yields:
    The temporary folder to fill.

  Raises:
    ConfigError: before the block, if the folder cannot be made or replaced.
    OSError: with a path, if writing fails later.
  """
  out = storage.absolute(path)
  if storage.is_remote(out):
    raise ConfigError(
      f"{flag}={path} is in a bucket, where a folder cannot appear at once: "
      "name a folder on a disk, and copy it (gcloud storage cp -r)"
    )
  # A symbolic link stays; the folder that it points to is replaced.
  out = epath.Path(os.path.realpath(out))
  here = os.path.join(os.path.realpath(os.getcwd()), "")
  if here.startswith(os.path.join(out, "")):
    raise ConfigError(
      f"{flag}={path} is the folder that this command runs in, or a parent of "
      "it: name another folder"
    )
  _check_replaceable(path, mine, flag)
  with _temporary_path(out, flag) as temporary:
    try:
      temporary.mkdir()
    except OSError as error:
      raise ConfigError(
        f"{flag}={path} cannot be written ({error.strerror or error}): name a "
        "folder in a writable one"
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
    what = "has other files" if out.is_dir() else "is a file"
    raise ConfigError(
      f"{flag}={path} {what}, and was not changed: name a new folder, or one "
      "that this command made"
    )


def _swap(new: epath.Path, out: epath.Path) -> None:
  """Moves `new` to `out`, and deletes a folder that was there."""
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
  """Checks that the disk of --out has space for `wanted` bytes.

  Raises:
    ConfigError: if there is not enough space.
  """
  out = storage.absolute(path)
  if storage.is_remote(out):
    return
  free = shutil.disk_usage(out.parent).free
  if wanted > free:
    raise ConfigError(
      f"--out={path} needs {wanted / 1e9:.1f} GB, but its disk has "
      f"{free / 1e9:.1f} GB: name a file on another disk, or make it smaller"
    )


def add_array(
  npz: zipfile.ZipFile,
  name: str,
  shape: tuple[int, ...],
  dtype: Any,
  parts: Iterable[np.ndarray],
) -> None:
  """Writes an array that arrives in parts to an .npz file, as `np.savez`.

  Args:
    npz: the open file.
    name: key of the array.
    shape: shape of the whole array.
    dtype: dtype of the whole array.
    parts: arrays [n, ...] in order, whose n add up to shape[0].
  """
  header = {
    "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
    "fortran_order": False,
    "shape": shape,
  }
  # zip64 for every array, as zipfile writes the header before it knows sizes.
  with npz.open(f"{name}.npy", "w", force_zip64=True) as member:
    np.lib.format.write_array_header_1_0(member, header)
    written = 0
    for part in parts:
      member.write(np.ascontiguousarray(part, dtype).tobytes())
      written += part.size
  assert written == math.prod(shape), (name, written, shape)


class _Unseekable:
  """A file in a bucket without `seek`, so that zipfile does not try to seek."""

  def __init__(self, file: Any):
    self._file = file

  def write(self, data: bytes) -> int:
    self._file.write(bytes(data))
    return len(data)

  def flush(self) -> None:
    """Does nothing: the file is uploaded when it is closed."""


@contextlib.contextmanager
def _errors_name_path(out: epath.Path) -> Iterator[None]:
  """Adds the path to an OSError that names no file."""
  try:
    with storage.os_errors(out):
      yield
  except OSError as error:
    if error.filename is not None or error.errno is None:
      raise
    raise OSError(error.errno, error.strerror, os.fspath(out)) from error
