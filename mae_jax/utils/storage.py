"""Where files are kept, on disks and in buckets (`gs://`), as if it were one.

epath hides most of the difference. What is left: a bucket's client raises
errors of its own, an address has no absolute form, and an object appears when
it is whole.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import uuid
from collections.abc import Iterator

from etils import epath

from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError

# Length of small files that processes write, replace and read.
RECORD_BYTES = 512

# Of TensorFlow, whose client it is and which may not be imported here.
_CLIENTS_ERRORS = "tensorflow.python.framework.errors_impl"


def is_remote(path: epath.PathLike) -> bool:
  """Whether a path is in a bucket."""
  return "://" in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
  """A path that does not depend on the working directory."""
  path = epath.Path(path)
  # epath puts the working directory in front of an address too.
  return path if is_remote(path) else path.resolve()


@contextlib.contextmanager
def os_errors(path: epath.PathLike) -> Iterator[None]:
  """Turns the errors of a bucket's client into those that a disk has.

  Args:
    path: what is reached for, which the error names.

  Raises:
    OSError: in place of the client's.
  """
  try:
    yield
  except Exception as error:
    if type(error).__module__ != _CLIENTS_ERRORS:
      raise
    raise OSError(
      errno.EIO, console.first_line(error), os.fspath(path)
    ) from error


def make_directories(path: epath.Path) -> None:
  """Makes a directory, if there is none, with all above it.

  Raises:
    OSError: if that cannot be.
  """
  with os_errors(path):
    # To make a directory in no bucket TensorFlow would try for ever.
    if is_remote(path) and not _bucket_of(path).exists():
      raise OSError(
        errno.ENOENT, "no such bucket, or not with these credentials", str(path)
      )
    path.mkdir(parents=True, exist_ok=True)


def _bucket_of(path: epath.PathLike) -> epath.Path:
  scheme, _, rest = os.fspath(path).partition("://")
  return epath.Path(f"{scheme}://{rest.partition('/')[0]}")


def make_directory(path: epath.PathLike, name: str) -> epath.Path:
  """Makes a directory, if there is none, with all above it.

  Args:
    path: of the directory.
    name: what the user calls it, such as "--workdir".

  Raises:
    ConfigError: if that cannot be.
  """
  given, path = os.fspath(path), absolute(path)
  try:
    if is_remote(path):
      with os_errors(path):
        _check_bucket(given, name)
    make_directories(path)
  except OSError as error:
    raise ConfigError(
      f"{name}={given} cannot be made ({error.strerror or error}): name a "
      "directory that may be written"
    ) from error
  return path


def _check_bucket(address: str, name: str) -> None:
  scheme, _, rest = address.partition("://")
  bucket = rest.partition("/")[0]
  if scheme != "gs" or not bucket:
    raise ConfigError(
      f"{name}={address} is no directory: name one on a disk, or in a bucket "
      "as gs://BUCKET/DIRECTORY"
    )
  try:
    found = importlib.util.find_spec("google.cloud.storage")
  except ModuleNotFoundError:  # google.cloud is absent too
    found = None
  if found is None:
    raise ConfigError(
      f"{name}={address} needs google-cloud-storage, with which Orbax writes "
      "checkpoints to buckets: pip install 'mae_jax[gcs]'"
    )
  if not _bucket_of(address).exists():
    raise ConfigError(
      f"{name}={address}: there is no bucket {bucket!r}, or it may not be seen "
      "with these credentials; make it, or log in: gcloud auth "
      "application-default login"
    )


def write_atomic(path: epath.Path, data: bytes) -> None:
  """Writes a file so that its old or its new content is there at any moment.

  Raises:
    OSError: if that is not possible now.
  """
  if is_remote(path):  # an object appears when it is whole
    with os_errors(path):
      path.write_bytes(data)
    return
  temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
  try:
    temporary.write_bytes(data)
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def check_writable(path: epath.Path) -> None:
  """Writes a small file of this process, and takes it away.

  Raises:
    OSError: if it cannot.
  """
  name = path / f".probe-{uuid.uuid4().hex[:8]}"
  write_atomic(name, bytes(RECORD_BYTES))
  with os_errors(path):
    name.unlink()
