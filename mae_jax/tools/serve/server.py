"""The HTTP server: how it listens, times out and stops."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http import h11_impl

from mae_jax.tools import web
from mae_jax.tools.serve.app import Application

_HEAD_SECONDS = 10.0  # to send the head of a request
_DRAIN_SECONDS = 30  # to send the last answers
_MORE_CONNECTIONS = 512  # than requests in progress


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
  """Binds an address; connections are refused until the server listens."""
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  # With the protocol named, asyncio sends small answers without delay.
  with socket.socket(
    family, socket.SOCK_STREAM, socket.IPPROTO_TCP
  ) as listener:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with web.address_errors(host, port):
      listener.bind((host, port))
    yield listener


class _Protocol(h11_impl.H11Protocol):
  """HTTP/1.1 that closes connections whose next request does not arrive.

  uvicorn closes a connection that sends nothing after an answer, but neither a
  new one nor one that sends a request byte by byte.
  """

  _timer: Any = None

  def connection_made(self, transport: Any) -> None:
    super().connection_made(transport)
    self._await_head(None)

  def connection_lost(self, exc: Exception | None) -> None:
    super().connection_lost(exc)
    self._timer.cancel()

  def on_response_complete(self) -> None:
    done = self.cycle
    super().on_response_complete()
    self._await_head(done)

  def _await_head(self, done: Any) -> None:
    def check() -> None:
      if self.cycle is done:
        self.timeout_keep_alive_handler()

    if self._timer is not None:
      self._timer.cancel()
    self._timer = self.loop.call_later(_HEAD_SECONDS, check)


class Server(uvicorn.Server):
  """A server that stops when all requests in progress are answered."""

  def __init__(
    self,
    application: Application,
    on_start: Callable[[], object] = lambda: None,
  ):
    """Prepares a server; `on_start` is called when it listens."""
    self._application = application
    self._on_start = on_start
    limit = application.limits.max_queue + _MORE_CONNECTIONS
    super().__init__(
      uvicorn.Config(
        application.asgi,
        loop="asyncio",  # uvloop would take the pipe of utils/signals.py
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=limit,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
      )
    )

  def capture_signals(self) -> Any:
    """Leaves signals to utils/signals.py."""
    return contextlib.nullcontext()

  async def startup(self, sockets: Any = None) -> None:
    """Listens."""
    await super().startup(sockets)
    self._on_start()

  def stop(self) -> None:
    """Refuses new requests, and ends after those in progress."""
    self._application.closing = True

  async def on_tick(self, counter: int) -> bool:
    """Checks every 0.1 s whether the server ends."""
    if self._application.closing and not self._application.in_progress:
      self.should_exit = True
    return await super().on_tick(counter)
