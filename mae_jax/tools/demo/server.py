"""A small server for one person at this machine; nothing is written to disk.

It listens on the loopback interface, and answers only who asks for it by that
name: a page of another site, open in the same browser, gets nothing.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import errno
import http.server
import io
import json
import pathlib
import secrets
import socket
from http import HTTPStatus
from typing import Any

import numpy as np
import skimage.data
from PIL import Image
from sklearn import datasets

from mae_jax.data import image_io
from mae_jax.evals import image_metrics, reconstruction
from mae_jax.models import masking
from mae_jax.tools import output_folder, reconstruction_figures, reconstructor
from mae_jax.tools import photo as photos
from mae_jax.tools.demo import precompile
from mae_jax.utils.errors import ConfigError, abbreviate

MAX_BYTES = 32 << 20  # of an upload
MAX_PIXELS = 64 << 20
_KEPT = 16  # images that are remembered
_PAGE = pathlib.Path(__file__).with_name("page.html")
LOOPBACK = ("127.0.0.1", "localhost")


class _Refused(Exception):
  """Says the status and, in a line, why."""

  def __init__(self, status: HTTPStatus, reason: str):
    super().__init__(reason)
    self.status = status


def _bad(reason: str) -> _Refused:
  return _Refused(HTTPStatus.BAD_REQUEST, reason)


def _field(asked: dict[str, Any], name: str, kind: Any, wanted: str) -> Any:
  """A value of a JSON object, if it is there and of this kind."""
  if name not in asked:
    raise _bad(f"{name} is missing: write {wanted}")
  value = asked[name]
  if not isinstance(value, kind) or isinstance(value, bool):
    raise _bad(f"{name}={abbreviate(value)} is not {wanted}")
  return value


class DemoService:
  """The network, and the images it was given.

  Its methods take and give JSON content; they raise `_Refused`.
  """

  def __init__(self, network: reconstructor.Reconstructor):
    """Starts to compile for what may be asked."""
    self._network = network
    self._images: collections.OrderedDict[str, photos.Photo] = (
      collections.OrderedDict()
    )
    length = network.grid[0] * network.grid[1]
    # Of a network whose masks are of pixels, the ratio may leave no patch.
    usual = min(max(int(length * (1 - network.mask_ratio)), 1), length - 1)
    self._warmer = precompile.Precompiler(self._compile, length, usual)

  def close(self) -> None:
    """Ends what is under way; a compilation is waited for."""
    self._warmer.close()

  def model(self) -> dict[str, Any]:
    """What the page needs to know of the network."""
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
    """Takes the bytes of an image file."""
    wanted = self._network.data
    shape, _, reason = image_io.inspect_image(
      data, b"", wanted.channels, wanted.exif_rotate
    )
    if not reason and int(shape[0]) * int(shape[1]) > MAX_PIXELS:
      raise _Refused(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the image has {shape[0]} x {shape[1]} pixels, more than "
        f"{MAX_PIXELS >> 20} million: make it smaller",
      )
    try:
      whole = photos.decode(data, reason, wanted.channels, wanted.exif_rotate)
    except photos.UnreadableError as error:
      raise _Refused(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"this is no image: {error}"
      ) from None
    return self._keep(whole)

  def example(self) -> dict[str, Any]:
    """Takes an image that is at hand, as large as the network's or larger."""
    data = self._network.data
    if data.channels not in (1, 3):
      raise _Refused(
        HTTPStatus.NOT_FOUND,
        f"there is no example of {data.channels} channels: drop a .npy file",
      )
    if data.image_size[0] < 32:
      digit = secrets.choice(datasets.load_digits().images)
      image = Image.fromarray(np.round(digit / 16 * 255).astype(np.uint8))
    else:
      name = secrets.choice(("astronaut", "chelsea", "coffee", "rocket"))
      image = Image.fromarray(getattr(skimage.data, name)())
    whole = np.asarray(image.convert("L" if data.channels == 1 else "RGB"))
    return self._keep(whole.reshape(*whole.shape[:2], data.channels))

  def paint(self, asked: Any) -> dict[str, Any]:
    """Hides patches of an image and has the network paint them.

    `asked` has "image"; either "hidden", a list of 0 and 1 for each patch, or
    "strategy", "mask_ratio" and "seed"; and "statistics".
    """
    if not isinstance(asked, dict):
      raise _bad(f"{abbreviate(asked)} is no object with an image")
    photo = self._images.get(_field(asked, "image", str, "what /image gave"))
    if photo is None:
      raise _Refused(
        HTTPStatus.NOT_FOUND, "this image is not remembered: drop it again"
      )
    names = " or ".join(reconstruction.STATISTICS)
    statistics = _field(asked, "statistics", str, names)
    if statistics not in reconstruction.STATISTICS:
      raise _bad(f"statistics={statistics!r} is not known: write {names}")
    hidden = self._given(asked) if "hidden" in asked else self._drawn(asked)
    if hidden.all():
      raise _bad("all patches are hidden: leave one at least")
    return self._painted(photo.shown, hidden, statistics)

  def _given(self, asked: dict[str, Any]) -> np.ndarray:
    rows, columns = self._network.grid
    wanted = f"a list of {rows * columns} numbers, 1 for a patch that is hidden"
    hidden = _field(asked, "hidden", list, wanted)
    if len(hidden) != rows * columns:
      raise _bad(
        f"hidden has {len(hidden)} patches, and {rows} x {columns} are there: "
        f"write {wanted}"
      )
    for place, each in enumerate(hidden):
      if each not in (0, 1):
        raise _bad(
          f"hidden has {abbreviate(each)} at {place}, not 0 or 1: write "
          f"{wanted}"
        )
    return np.array(hidden, bool)

  def _drawn(self, asked: dict[str, Any]) -> np.ndarray:
    names = " or ".join(masking.STRATEGIES)
    strategy = _field(asked, "strategy", str, f"{names}, or hidden patches")
    above = "a number above 0 and below 1"
    ratio = _field(asked, "mask_ratio", (int, float), above)
    if not 0 < ratio < 1:  # as NaN is not
      raise _bad(f"mask_ratio={abbreviate(ratio)} is not {above}")
    whole = "a whole number from 0 to below 2^32"
    seed = _field(asked, "seed", int, whole)
    if not 0 <= seed < 1 << 32:
      raise _bad(f"seed={abbreviate(seed)} is not {whole}")
    try:
      return self._network.masks(strategy, ratio, 1, seed)[0]
    except ConfigError as error:
      # The painter speaks of flags, which nobody wrote here.
      raise _bad(str(error).replace("--", "")) from None

  def _painted(
    self, shown: np.ndarray, hidden: np.ndarray, statistics: str
  ) -> dict[str, Any]:
    with self._warmer.serving(int((~hidden).sum())):
      painted = self._network.paint(
        shown[None], hidden[None], statistics=statistics
      )
    pasted = painted.pasted(shown[None])[0]
    score = None
    if hidden.any():
      found = image_metrics.score(pasted, shown, painted.hidden[0])
      score = [x if np.isfinite(x) else None for x in found]
    return {
      "hidden": hidden.astype(int).tolist(),
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
    # Only what is shown: photographs are large.
    self._images[name] = photos.Photo(photo.shown, photo.box, photo.shown)
    while len(self._images) > _KEPT:
      self._images.popitem(last=False)
    return {"image": name, "shown": _uri(photo.shown)}

  def _compile(self, shown: int) -> None:
    data, (rows, columns) = self._network.data, self._network.grid
    blank = np.zeros((1, *data.image_size, data.channels), np.uint8)
    self._network.predict(blank, np.arange(rows * columns)[None] >= shown)


def _uri(picture: np.ndarray) -> str:
  buffer = io.BytesIO()
  output_folder.as_image(picture).save(buffer, "png")
  return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  timeout = 60
  server: Server

  def do_GET(self) -> None:
    answers = {
      "/model": self.server.desk.model,
      "/example": self.server.desk.example,
    }
    path = self._path()
    if path == "/":
      self._answer(lambda: _PAGE.read_bytes(), "text/html; charset=utf-8")
    elif path in answers:
      self._answer(lambda: _json(answers[path]()), "application/json")
    else:
      self._answer(self._nothing, "application/json")

  def do_HEAD(self) -> None:
    self.do_GET()

  def do_POST(self) -> None:
    answers = {
      "/image": lambda body: self.server.desk.add(body),
      "/paint": self._paint,
    }
    answer = answers.get(self._path())
    if answer is None:
      self._answer(self._nothing, "application/json")
      return
    self._answer(lambda: _json(answer(self._body())), "application/json")

  def _path(self) -> str:
    return self.path.partition("?")[0]

  def _paint(self, body: bytes) -> dict[str, Any]:
    try:
      return self.server.desk.paint(json.loads(body))
    except json.JSONDecodeError as error:
      raise _bad(f"this is no JSON: {error}") from None
    except UnicodeDecodeError:
      raise _bad("this is no JSON: it is no text") from None
    except RecursionError:  # to read it, or to tell of it
      raise _bad(
        "this JSON is nested too deeply: write an object whose values are "
        "numbers, names and a list of numbers"
      ) from None

  def _nothing(self) -> bytes:
    raise _Refused(HTTPStatus.NOT_FOUND, f"there is no {self.path}")

  def _body(self) -> bytes:
    text = self.headers.get("Content-Length", "")
    if not text.isdigit():
      raise _Refused(HTTPStatus.LENGTH_REQUIRED, "the length is missing")
    if int(text) > MAX_BYTES:
      raise _Refused(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"{int(text) / 1e6:.0f} MB are more than the {MAX_BYTES / 1e6:.0f} MB "
        "that are taken: make the image smaller",
      )
    return self.rfile.read(int(text))

  def _check(self) -> None:
    host = self.headers.get("Host", "").partition(":")[0]
    origin = self.headers.get("Origin")
    if self.server.names and host not in self.server.names:
      raise _Refused(HTTPStatus.FORBIDDEN, f"{host!r} is not this server")
    if (
      origin is not None and origin.partition("://")[2] != self.headers["Host"]
    ):
      raise _Refused(HTTPStatus.FORBIDDEN, f"{origin} is another site")

  def _answer(self, make: Any, kind: str) -> None:
    status = HTTPStatus.OK
    try:
      self._check()
      content = make()
    except _Refused as refused:
      status, kind = refused.status, "application/json"
      content = _json({"error": str(refused)})
      self.close_connection = True  # what was sent may not have been read
    except ValueError as error:
      status, kind = HTTPStatus.BAD_REQUEST, "application/json"
      content = _json({"error": f"this cannot be used: {error}"})
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
    with contextlib.suppress(ConnectionError):  # whoever asked may be gone
      self.wfile.write(content)

  def log_message(self, *args: object) -> None:
    pass


def _json(content: Any) -> bytes:
  return json.dumps(content).encode()


def check_port(port: int) -> None:
  """Raises ConfigError for what is no port."""
  if not 0 <= port < 1 << 16:
    raise ConfigError(
      f"--port={port} is not in 0..65535: name another port, 0 for any that is "
      "free"
    )


class Server(http.server.ThreadingHTTPServer):
  """Answers once `serve_forever` is called, until `server_close`."""

  daemon_threads = True

  def __init__(
    self, network: reconstructor.Reconstructor, host: str, port: int
  ):
    """Listens.

    Args:
      network: what paints.
      host: the address of an interface.
      port: 0 for any.

    Raises:
      ConfigError: if it cannot listen there.
    """
    check_port(port)
    try:
      super().__init__((host, port), _Handler)
    except (OSError, UnicodeError) as error:
      # A name that is not found or cannot be one, or is of another machine.
      of_host = isinstance(error, (socket.gaierror, UnicodeError))
      if of_host or getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
        flag = f"--host={host}"
        remedy = "another host, 127.0.0.1 for this machine alone"
      else:
        flag = f"--port={port}"
        remedy = "another port, 0 for any that is free"
      raise ConfigError(
        f"{flag} cannot be listened on "
        f"({getattr(error, 'strerror', None) or error}): name {remedy}"
      ) from error
    self.desk = DemoService(network)
    # Elsewhere whoever is meant may have given it any name.
    self.names = LOOPBACK if host in LOOPBACK else ()

  def server_close(self) -> None:
    """Ends it."""
    super().server_close()
    if hasattr(self, "desk"):  # else it could not listen
      self.desk.close()
