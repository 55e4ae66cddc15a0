"""Parts that the demo page and `serve` share: addresses, uploads, errors."""

import contextlib
import errno
import io
import socket
import sys
from collections.abc import Iterator
from http import HTTPStatus

import numpy as np

from mae_jax.config import DataConfig
from mae_jax.data import image_files, image_headers, image_io
from mae_jax.tools import output_folder
from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class HttpError(Exception):
  """An answer with an error status and one line of text."""

  def __init__(self, reason: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST):
    super().__init__(reason)
    self.status = status


def decode(data: bytes, settings: DataConfig, max_pixels: int) -> np.ndarray:
  """Decodes an uploaded image file.

  Args:
    data: the bytes of the file.
    settings: how files are read.
    max_pixels: images of more pixels are refused before they are decoded.

  Returns:
    [H, W, C], as `image_files.read`.

  Raises:
    HttpError: if it is too large or no image.
  """
  # `max_pixels` replaces data.max_image_pixels of the training run.
  how = image_headers.Reading.of(settings)._replace(max_pixels=sys.maxsize)
  shape, _, reason = image_io.inspect_image(data, b"", how)
  if not reason and int(shape[0]) * int(shape[1]) > max_pixels:
    raise HttpError(
      f"the image has {shape[0]} x {shape[1]} pixels, more than "
      f"{max_pixels:,}: make it smaller",
      HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    )
  try:
    return image_files.decode(data, reason, how)
  except image_headers.UnreadableError as error:
    raise HttpError(
      f"this is not an image: {error}", HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    ) from None


def png(picture: np.ndarray) -> bytes:
  """Returns the bytes of a PNG of uint8 [H, W, C]."""
  buffer = io.BytesIO()
  output_folder.as_image(picture).save(buffer, "png")
  return buffer.getvalue()


def check_port(port: int) -> None:
  """Raises ConfigError if `port` is not a port."""
  if not 0 <= port < 1 << 16:
    raise ConfigError(
      f"--port={port} is not in 0..65535: choose another port, 0 for any free "
      "one"
    )


@contextlib.contextmanager
def address_errors(host: str, port: int) -> Iterator[None]:
  """Explains errors of the block, which listens on an address.

  Raises:
    ConfigError: if it cannot.
  """
  check_port(port)
  try:
    yield
  except (OSError, UnicodeError) as error:
    # The host name is unknown or malformed, or belongs to another machine.
    of_host = isinstance(error, (socket.gaierror, UnicodeError))
    if of_host or getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
      flag = f"--host={host}"
      remedy = "another host, 127.0.0.1 for this machine only"
    else:
      flag = f"--port={port}"
      remedy = "another port, 0 for any free one"
    raise ConfigError(
      f"cannot listen on {flag} "
      f"({getattr(error, 'strerror', None) or error}): choose {remedy}"
    ) from error


def warn_if_open(host: str, address: str) -> None:
  """Warns if other machines reach the address."""
  if host not in LOOPBACK:
    console.warn(
      f"{address} can be reached from other machines without a password"
    )
