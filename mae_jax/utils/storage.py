"""Files on disks and in buckets (`gs://`), with one interface.

epath hides most of the differences. This module hides the rest: a bucket's
client raises its own errors, an address has no absolute form, and an object
appears only when it is complete.
"""

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

# The bucket client is TensorFlow's, which must not be imported here.
_CLIENT_ERRORS = "tensorflow.python.framework.errors_impl"


def is_remote(path: epath.PathLike) -> bool:
  """Checks whether a path is in a bucket."""
  return "://" in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
  """Returns a path that does not depend on the working directory.

  Raises:
    ConfigError: if it begins with an unknown scheme, or is relative to a
      working directory that was deleted.
  """
  given = os.fspath(path)
  try:
    # epath would prepend the working directory to an address.
    return (
      epath.Path(given) if is_remote(given) else epath.Path(given).resolve()
    )
  except KeyError:  # of epath
    scheme, _, rest = given.partition("://")
    raise ConfigError(
      f"{given} begins with {scheme}://, which is not known: write a plain "
      f"path such as {rest or '/data'}, or gs://BUCKET/DIRECTORY"
    ) from None
  except FileNotFoundError:  # of os.getcwd
    raise ConfigError(
      f"{given} is relative to the current directory, which was deleted: "
      "change to another directory, or give an absolute path"
    ) from None


@contextlib.contextmanager
def os_errors(path: epath.PathLike) -> Iterator[None]:
  """Turns errors of a bucket's client into OSErrors that name the path."""
  try:
    yield
  except Exception as error:
    if type(error).__module__ != _CLIENT_ERRORS:
      raise
    raise OSError(
      errno.EIO, console.first_line(error), os.fspath(path)
    ) from error


def make_directories(path: epath.Path) -> None:
  """Makes a directory and its parents, unless they exist.

  Raises:
    OSError: if that fails.
  """
  with os_errors(path):
    # TensorFlow would try forever to make a directory in a missing bucket.
    if is_remote(path) and not _bucket_of(path).exists():
      raise OSError(
        errno.ENOENT, "no such bucket, or not with these credentials", str(path)
      )
    path.mkdir(parents=True, exist_ok=True)


def _bucket_of(path: epath.PathLike) -> epath.Path:
  scheme, _, rest = os.fspath(path).partition("://")
  return epath.Path(f"{scheme}://{rest.partition('/')[0]}")


def make_directory(path: epath.PathLike, name: str) -> epath.Path:
  """Makes a directory and its parents.

  Args:
    path: the directory, local or in a bucket.
    name: what messages call it, such as "--workdir".

  Raises:
    ConfigError: if that fails.
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
      "writable directory"
    ) from error
  return path


def _check_bucket(address: str, name: str) -> None:
  scheme, _, rest = address.partition("://")
  bucket = rest.partition("/")[0]
  if scheme != "gs" or not bucket:
    raise ConfigError(
      f"{name}={address} is not a directory: name one on a disk, or "
      "gs://BUCKET/DIRECTORY in a bucket"
    )
  try:
    found = importlib.util.find_spec("google.cloud.storage")
  except ModuleNotFoundError:  # google.cloud is absent too
    found = None
  if found is None:
    raise ConfigError(
      f"{name}={address} needs google-cloud-storage, which Orbax uses to write "
      "checkpoints to buckets: pip install 'mae_jax[gcs]'"
    )
  if not _bucket_of(address).exists():
    raise ConfigError(
      f"{name}={address}: there is no bucket {bucket!r}, or these credentials "
      "may not read it; make it, or log in: gcloud auth application-default "
      "login"
    )


def write_atomic(path: epath.Path, data: bytes) -> None:
  """Replaces a file atomically: readers see the old or the new content.

  Raises:
    OSError: if that fails.
  """
  if is_remote(path):  # an object appears only when it is complete
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
  """Checks that a directory is writable, with a small temporary file.

  Raises:
    OSError: if it is not.
  """
  name = path / f".probe-{uuid.uuid4().hex[:8]}"
  write_atomic(name, bytes(RECORD_BYTES))
  with os_errors(path):
    name.unlink()
