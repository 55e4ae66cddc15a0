"""The server of the demo page; it writes nothing to disk.

By default the server listens on the loopback interface and checks the Host and
Origin headers. So another site in the same browser gets no answer.
"""

import base64
import collections
import errno
import http.server
import io
import json
import pathlib
import secrets
import socket
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import numpy as np
import skimage.data
from PIL import Image
from sklearn import datasets

from mae_jax.data import image_files, image_headers, image_io
from mae_jax.evals import image_metrics, reconstruction
from mae_jax.models import masking
from mae_jax.tools import output_folder, reconstruction_figures, reconstructor
from mae_jax.tools import photo as photos
from mae_jax.tools.demo import precompile
from mae_jax.utils.errors import ConfigError, abbreviate

MAX_BYTES = 32 << 20  # per upload
MAX_PIXELS = 64 << 20
_MAX_IMAGES = 16  # in memory
_PAGE = pathlib.Path(__file__).with_name("page.html")
LOOPBACK = ("127.0.0.1", "localhost")


class _HttpError(Exception):
  """An answer with an error status and one line of text."""

  def __init__(self, reason: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST):
    super().__init__(reason)
    self.status = status


def _field(
  request: dict[str, Any],
  name: str,
  kind: Any,
  wanted: str,
  fits: Callable[[Any], bool] = lambda value: True,
) -> Any:
  """Returns a field of a JSON object; checks that it exists and its value."""
  if name not in request:
    raise _HttpError(f"{name} is missing: write {wanted}")
  value = request[name]
  if not isinstance(value, kind) or isinstance(value, bool) or not fits(value):
    raise _HttpError(f"{name}={abbreviate(value)} is not {wanted}")
  return value


class DemoService:
  """The model and the uploaded images.

  Methods take and return JSON content, and raise `_HttpError`.
  """

  def __init__(self, network: reconstructor.Reconstructor):
    """Starts the thread that compiles programs."""
    self._network = network
    # The oldest first. Threads share it: its methods are atomic.
    self._images: collections.OrderedDict[str, photos.Photo] = (
      collections.OrderedDict()
    )
    length = network.grid[0] * network.grid[1]
    # With pixel noise, mask_ratio can leave no visible patch: clip it.
    usual = min(max(int(length * (1 - network.mask_ratio)), 1), length - 1)
    self._precompiler = precompile.Precompiler(self._compile, length, usual)

  def close(self) -> None:
    """Stops the thread that compiles programs."""
    self._precompiler.close()

  def model(self) -> dict[str, Any]:
    """Returns the properties of the model that the page needs."""
    network = self._network
    return {
      "rows": network.grid[0],
      "columns": network.grid[1],
      "height": network.data.image_size[0],
      "width": network.data.image_size[1],
      "mask_ratio": network.mask_ratio,
      "normalized": network.normalized,
      "strategies": list(masking.STRATEGIES),
      "statistics": list(reconstruction.STATISTICS),
    }

  def add(self, data: bytes) -> dict[str, Any]:
    """Adds an image from the bytes of a file."""
    how = image_headers.Reading.of(self._network.data)
    shape, _, reason = image_io.inspect_image(data, b"", how)
    if not reason and int(shape[0]) * int(shape[1]) > MAX_PIXELS:
      raise _HttpError(
        f"the image has {shape[0]} x {shape[1]} pixels, more than "
        f"{MAX_PIXELS >> 20} million: make it smaller",
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
      )
    try:
      whole = image_files.decode(data, reason, how)
    except image_headers.UnreadableError as error:
      raise _HttpError(
        f"this is not an image: {error}", HTTPStatus.UNSUPPORTED_MEDIA_TYPE
      ) from None
    return self._keep(whole)

  def example(self) -> dict[str, Any]:
    """Adds a sample image, at least as large as the model's input."""
    data = self._network.data
    if data.channels not in (1, 3):
      raise _HttpError(
        f"there is no sample image of {data.channels} channels: drop a .npy"
        " file",
        HTTPStatus.NOT_FOUND,
      )
    if data.image_size[0] < 32:
      digit = secrets.choice(datasets.load_digits().images)
      image = Image.fromarray(np.round(digit / 16 * 255).astype(np.uint8))
    else:
      name = secrets.choice(("astronaut", "chelsea", "coffee", "rocket"))
      image = Image.fromarray(getattr(skimage.data, name)())
    whole = np.asarray(image.convert("L" if data.channels == 1 else "RGB"))
    return self._keep(whole.reshape(*whole.shape[:2], data.channels))

  def paint(self, request: Any) -> dict[str, Any]:
    """Masks patches of an image and reconstructs them.

    `request` has "image" and "statistics", and either "masked", a list of 0
    and 1 for each patch, or "strategy", "mask_ratio" and "seed".
    """
    if not isinstance(request, dict):
      raise _HttpError(f"{abbreviate(request)} is not an object with an image")
    photo = self._images.get(
      _field(request, "image", str, "the name that /image returned")
    )
    if photo is None:
      raise _HttpError(
        "this image is no longer in memory: drop it again", HTTPStatus.NOT_FOUND
      )
    names = " or ".join(reconstruction.STATISTICS)
    statistics = _field(request, "statistics", str, names)
    if statistics not in reconstruction.STATISTICS:
      raise _HttpError(f"statistics={statistics!r} is not known: write {names}")
    hidden = (
      self._given_mask(request)
      if "masked" in request
      else self._sampled_mask(request)
    )
    if hidden.all():
      raise _HttpError("all patches are masked: leave at least one visible")
    return self._reconstruct(photo.shown, hidden, statistics)

  def _given_mask(self, request: dict[str, Any]) -> np.ndarray:
    rows, columns = self._network.grid
    wanted = f"a list of {rows * columns} numbers, 1 for a masked patch"
    hidden = _field(request, "masked", list, wanted)
    if len(hidden) != rows * columns:
      raise _HttpError(
        f"masked has {len(hidden)} entries for {rows} x {columns} patches: "
        f"write {wanted}"
      )
    for place, each in enumerate(hidden):
      if each not in (0, 1):
        raise _HttpError(
          f"masked has {abbreviate(each)} at {place}, not 0 or 1: write "
          f"{wanted}"
        )
    return np.array(hidden, bool)

  def _sampled_mask(self, request: dict[str, Any]) -> np.ndarray:
    names = " or ".join(masking.STRATEGIES)
    strategy = _field(request, "strategy", str, f"{names}, or send masked")
    above = "a number above 0 and below 1"
    ratio = _field(  # rejects NaN too
      request, "mask_ratio", int | float, above, lambda x: 0 < x < 1
    )
    whole = "a whole number from 0 to below 2^32"
    seed = _field(request, "seed", int, whole, lambda x: 0 <= x < 1 << 32)
    try:
      return self._network.masks(strategy, ratio, 1, seed)[0]
    except ConfigError as error:
      # Messages of the reconstructor name flags; this request has none.
      raise _HttpError(str(error).replace("--", "")) from None

  def _reconstruct(
    self, shown: np.ndarray, hidden: np.ndarray, statistics: str
  ) -> dict[str, Any]:
    with self._precompiler.serving(int((~hidden).sum())):
      painted = self._network.paint(
        shown[None], hidden[None], statistics=statistics
      )
    shown = image_io.to_bytes(shown)
    pasted = painted.pasted(shown[None])[0]
    score = None
    if hidden.any():
      found = image_metrics.score(pasted, shown, painted.hidden[0])
      score = [x if np.isfinite(x) else None for x in found]
    return {
      "masked": hidden.astype(int).tolist(),
      "pictures": {
        "reconstruction": _uri(painted.reconstruction[0]),
        "pasted": _uri(pasted),
        "error": _uri(reconstruction_figures.error_map(pasted, shown)),
      },
      "score": score,
      "uses_truth": statistics == "true" and self._network.normalized,
    }

  def _keep(self, whole: np.ndarray) -> dict[str, Any]:
    photo = photos.fit(whole, self._network.data)
    name = secrets.token_hex(8)
    # Only the resized image: photographs are large.
    self._images[name] = photos.Photo(photo.picture, photo.box, photo.shown)
    while len(self._images) > _MAX_IMAGES:
      self._images.popitem(last=False)
    return {"image": name, "shown": _uri(photo.picture)}

  def _compile(self, num_visible: int) -> None:
    data, (rows, columns) = self._network.data, self._network.grid
    dtype = image_headers.Reading.of(data).dtype
    blank: np.ndarray = np.zeros((1, *data.image_size, data.channels), dtype)
    self._network.predict(blank, np.arange(rows * columns)[None] >= num_visible)


def _uri(picture: np.ndarray) -> str:
  buffer = io.BytesIO()
  output_folder.as_image(picture).save(buffer, "png")
  return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  timeout = 60
  server: "Server"

  def do_GET(self) -> None:
    status, kind = HTTPStatus.OK, "application/json"
    try:
      self._check()
      answer = self._answer()
    except _HttpError as error:
      status, answer = error.status, {"error": str(error)}
      self.close_connection = True  # the body may be unread
    except ValueError as error:
      status = HTTPStatus.BAD_REQUEST
      answer = {"error": f"this cannot be used: {error}"}
    if isinstance(answer, bytes):
      content, kind = answer, "text/html; charset=utf-8"
    else:
      content = json.dumps(answer).encode()
    self.send_response(status)
    self.send_header("Content-Type", kind)
    self.send_header("Content-Length", str(len(content)))
    self.send_header("Cache-Control", "no-store")
    self.send_header("X-Content-Type-Options", "nosniff")
    self.send_header(
      "Content-Security-Policy",
      "default-src 'self'; img-src data: blob:; style-src 'unsafe-inline'; "
      "script-src 'unsafe-inline'; frame-ancestors 'none'",
    )
    if self.close_connection:
      self.send_header("Connection", "close")
    self.end_headers()
    if self.command == "HEAD":
      return
    self.wfile.write(content)

  do_HEAD = do_POST = do_GET

  def _answer(self) -> bytes | dict[str, Any]:
    """Returns the page, or JSON content."""
    service = self.server.service
    method = self.command.replace("HEAD", "GET")
    match method, self.path.partition("?")[0]:
      case "GET", "/":
        return _PAGE.read_bytes()
      case "GET", "/model":
        return service.model()
      case "POST", "/example":  # a GET of another site's page adds no image
        return service.example()
      case "POST", "/image":
        return service.add(self._body())
      case "POST", "/paint":
        return self._paint(self._body())
    raise _HttpError(f"there is no {self.path}", HTTPStatus.NOT_FOUND)

  def _paint(self, body: bytes) -> dict[str, Any]:
    try:
      return self.server.service.paint(json.loads(body))
    except json.JSONDecodeError as error:
      raise _HttpError(f"this is not JSON: {error}") from None
    except UnicodeDecodeError:
      raise _HttpError("this is not JSON: it is not text") from None
    except RecursionError:  # while reading it, or in the message
      raise _HttpError(
        "this JSON is nested too deeply: write an object whose values are "
        "numbers, names and a list of numbers"
      ) from None

  def _body(self) -> bytes:
    text = self.headers.get("Content-Length", "")
    if not text.isdigit():
      raise _HttpError(
        "the header Content-Length is missing", HTTPStatus.LENGTH_REQUIRED
      )
    if int(text) > MAX_BYTES:
      raise _HttpError(
        f"{int(text) / 1e6:.0f} MB are more than the limit of "
        f"{MAX_BYTES / 1e6:.0f} MB: make the image smaller",
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
      )
    return self.rfile.read(int(text))

  def _check(self) -> None:
    host = self.headers.get("Host", "").partition(":")[0]
    origin = self.headers.get("Origin")
    if self.server.names and host not in self.server.names:
      raise _HttpError(f"{host!r} is not this server", HTTPStatus.FORBIDDEN)
    if (
      origin is not None and origin.partition("://")[2] != self.headers["Host"]
    ):
      raise _HttpError(f"{origin} is another site", HTTPStatus.FORBIDDEN)

  def log_message(self, *args: object) -> None:
    pass


def check_port(port: int) -> None:
  """Raises ConfigError if `port` is not a port."""
  if not 0 <= port < 1 << 16:
    raise ConfigError(
      f"--port={port} is not in 0..65535: choose another port, 0 for any free "
      "one"
    )


class Server(http.server.ThreadingHTTPServer):
  """An HTTP server that runs from `serve_forever` to `server_close`."""

  daemon_threads = True

  def __init__(
    self, network: reconstructor.Reconstructor, host: str, port: int
  ):
    """Binds the port, 0 for any free one, of an interface's address.

    Raises:
      ConfigError: if it cannot listen on the address.
    """
    check_port(port)
    try:
      super().__init__((host, port), _Handler)
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
    self.service = DemoService(network)
    # On other interfaces the server can have any host name.
    self.names = LOOPBACK if host in LOOPBACK else ()

  def handle_error(self, request: Any, client_address: Any) -> None:
    """Prints the traceback of an error, unless the client is gone."""
    if not isinstance(sys.exception(), ConnectionError):
      super().handle_error(request, client_address)

  def server_close(self) -> None:
    """Stops the server and its threads."""
    super().server_close()
    if hasattr(self, "service"):  # missing if it could not listen
      self.service.close()
