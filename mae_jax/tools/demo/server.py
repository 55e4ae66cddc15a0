"""The server of the demo page; it writes nothing to disk.

By default the server listens on the loopback interface and checks the Host and
Origin headers. So another site in the same browser gets no answer.
"""

import http.server
import json
import pathlib
import sys
from http import HTTPStatus
from typing import Any

from mae_jax.tools import web
from mae_jax.tools.demo.services import Service
from mae_jax.tools.web import HttpError

MAX_BYTES = 32 << 20  # per upload
_PAGE = pathlib.Path(__file__).with_name("page.html")


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  timeout = 60
  server: "Server"

  def do_GET(self) -> None:
    status, kind = HTTPStatus.OK, "application/json"
    try:
      self._check()
      answer = self._answer()
    except HttpError as error:
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
      case "POST", service.path:
        return self._ask(self._body())
    raise HttpError(f"there is no {self.path}", HTTPStatus.NOT_FOUND)

  def _ask(self, body: bytes) -> dict[str, Any]:
    try:
      return self.server.service.answer(json.loads(body))
    except json.JSONDecodeError as error:
      raise HttpError(f"this is not JSON: {error}") from None
    except UnicodeDecodeError:
      raise HttpError("this is not JSON: it is not text") from None
    except RecursionError:  # while reading it, or in the message
      raise HttpError(
        "this JSON is nested too deeply: write an object whose values are "
        "numbers, names and a list of numbers"
      ) from None

  def _body(self) -> bytes:
    text = self.headers.get("Content-Length", "")
    if not text.isdigit():
      raise HttpError(
        "the header Content-Length is missing", HTTPStatus.LENGTH_REQUIRED
      )
    if int(text) > MAX_BYTES:
      raise HttpError(
        f"{int(text) / 1e6:.0f} MB are more than the limit of "
        f"{MAX_BYTES / 1e6:.0f} MB: make the image smaller",
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
      )
    return self.rfile.read(int(text))

  def _check(self) -> None:
    host = self.headers.get("Host", "").partition(":")[0]
    origin = self.headers.get("Origin")
    if self.server.names and host not in self.server.names:
      raise HttpError(f"{host!r} is not this server", HTTPStatus.FORBIDDEN)
    if (
      origin is not None and origin.partition("://")[2] != self.headers["Host"]
    ):
      raise HttpError(f"{origin} is another site", HTTPStatus.FORBIDDEN)

  def log_message(self, *args: object) -> None:
    pass


class Server(http.server.ThreadingHTTPServer):
  """An HTTP server that runs from `serve_forever` to `server_close`."""

  daemon_threads = True

  def __init__(self, service: Service, host: str, port: int):
    """Binds the port, 0 for any free one, of an interface's address.

    Raises:
      ConfigError: if it cannot listen on the address.
    """
    with web.address_errors(host, port):
      super().__init__((host, port), _Handler)
    self.service = service
    # On other interfaces the server can have any host name.
    self.names = web.LOOPBACK if host in web.LOOPBACK else ()

  def handle_error(self, request: Any, client_address: Any) -> None:
    """Prints the traceback of an error, unless the client is gone."""
    if not isinstance(sys.exception(), ConnectionError):
      super().handle_error(request, client_address)

  def server_close(self) -> None:
    """Stops the server and its threads."""
    super().server_close()
    if hasattr(self, "service"):  # missing if it could not listen
      self.service.close()
