"""The server's application: routes, limits, and errors as JSON."""

import asyncio
import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from http import HTTPStatus
from typing import Any, NamedTuple, Self

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mae_jax.config import DataConfig
from mae_jax.data import image_headers, prepare
from mae_jax.tools.serve import batching, endpoints, metrics
from mae_jax.tools.web import HttpError, decode
from mae_jax.utils.errors import printable

_LINGER = 1.0  # seconds in which the rest of a refused body is dropped
_CLIENT_GONE = 499  # nobody reads this answer; nginx counts it as this status


class Limits(NamedTuple):
  """Limits on requests.

  Attributes:
    max_body: bytes of a body.
    max_pixels: pixels of an image.
    max_queue: requests that are read, wait or run at a time.
    read_seconds: time to read a body.
  """

  max_body: int
  max_pixels: int
  max_queue: int
  read_seconds: float


class _Refusal(JSONResponse):
  """An error sent while the client may still send its body.

  To close a connection that receives data is to reset it, and the client may
  lose the answer. So what arrives within a moment is dropped first.
  """

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    headers = [*self.raw_headers, (b"connection", b"close")]
    start = {"type": "http.response.start", "status": self.status_code}
    await send({**start, "headers": headers})
    body = {"type": "http.response.body", "body": self.body}
    await send({**body, "more_body": True})
    with contextlib.suppress(TimeoutError):
      async with asyncio.timeout(_LINGER):
        while (await receive()).get("more_body"):
          pass
    await send({"type": "http.response.body"})


class Application:
  """The routes, with the state of one server.

  Attributes:
    asgi: the application for an ASGI server.
    in_progress: requests that are read, wait or run.
    closing: True if no more requests are accepted.
    limits: limits on requests.
    about: the answer of /v1/model.
  """

  def __init__(
    self,
    opened: Sequence[endpoints.Endpoint],
    data: DataConfig,
    about: Mapping[str, Any],
    limits: Limits,
    *,
    batch_size: int,
    max_wait: float,
  ):
    """Compiles all programs and starts the threads.

    Args:
      opened: the endpoints.
      data: how images are prepared.
      about: part of the answer of /v1/model.
      limits: limits on requests.
      batch_size: as in `batching.Batcher`.
      max_wait: as in `batching.Batcher`.
    """
    self.in_progress = 0
    self.closing = False
    self.limits = limits
    self._data = data
    self._counts = metrics.Metrics(batching.batch_sizes(batch_size))
    self._batcher = batching.Batcher(
      {k: v for each in opened for k, v in each.programs.items()},
      batch_size,
      max_wait,
      self._counts.add_batch,
    )
    self._pool = futures.ThreadPoolExecutor(os.cpu_count())
    self.about = dict(about) | {
      "height": data.image_size[0],
      "width": data.image_size[1],
      "channels": data.channels,
      "batch_sizes": list(self._batcher.sizes),
      "limits": limits._asdict(),
      "endpoints": {each.name: dict(each.info) for each in opened},
    }
    watch = self._counts.watch
    watch("queue_images", "Images that wait.", self._batcher.__len__)
    watch(
      "requests_in_progress",
      "Requests that are read, wait or run.",
      lambda: self.in_progress,
    )
    routes = [
      Route("/healthz", self._health),
      Route("/metrics", self._metrics),
      Route("/v1/model", self._model),
      *(
        Route(f"/v1/{each.name}", self._route(each), methods=["POST"])
        for each in opened
      ),
    ]
    self._paths = [route.path for route in routes]
    starlette = Starlette(
      routes=routes,
      exception_handlers={
        HttpError: self._refuse,
        HTTPException: self._refuse_path,
        Exception: self._fail,
      },
    )
    starlette.router.redirect_slashes = False
    self.asgi = self._counts.middleware(starlette, self._paths)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error: object) -> None:
    """Stops the threads, after all requests."""
    self._batcher.close()
    self._pool.shutdown()

  def _route(self, endpoint: endpoints.Endpoint) -> Any:
    async def answer(request: Request) -> Response:
      options = endpoint.options(request.query_params.multi_items())
      with self._admitted():
        try:
          body = await self._read(request)
        except ClientDisconnect:
          return Response(status_code=_CLIENT_GONE)
        request.state.is_read = True
        loop = asyncio.get_running_loop()

        def load() -> tuple[str, batching.Arrays]:
          whole = decode(body, self._data, self.limits.max_pixels)
          return endpoint.prepare(prepare.fit(whole, self._data), options)

        program, arrays = await loop.run_in_executor(self._pool, load)
        image_headers.print_notes()
        row = await asyncio.wrap_future(self._batcher.submit(program, arrays))
        accept = request.headers.get("accept", "")
        content = await loop.run_in_executor(
          self._pool, endpoint.answer, row, arrays, options, accept
        )
      return Response(content.body, media_type=content.kind)

    return answer

  @contextlib.contextmanager
  def _admitted(self) -> Iterator[None]:
    """Counts a request in the block, or refuses it."""
    if self.closing:
      raise HttpError(
        "the server is stopping: ask another one",
        HTTPStatus.SERVICE_UNAVAILABLE,
      )
    if self.in_progress >= self.limits.max_queue:
      raise HttpError(
        f"{self.in_progress} requests are in progress, the limit: try again",
        HTTPStatus.SERVICE_UNAVAILABLE,
      )
    self.in_progress += 1
    try:
      yield
    finally:
      self.in_progress -= 1

  async def _read(self, request: Request) -> bytes:
    """Reads a body within the limits."""
    most = self.limits.max_body
    too_large = HttpError(
      f"the body has more than the limit of {most:,} bytes: send a smaller "
      "image",
      HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    )
    if int(request.headers.get("content-length", 0)) > most:
      raise too_large
    body = bytearray()
    try:
      async with asyncio.timeout(self.limits.read_seconds):
        async for part in request.stream():
          body += part
          if len(body) > most:
            raise too_large
    except TimeoutError:
      raise HttpError(
        f"the body did not arrive within {self.limits.read_seconds:g} s",
        HTTPStatus.REQUEST_TIMEOUT,
      ) from None
    return bytes(body)

  async def _health(self, request: Request) -> Response:
    if self.closing:
      return JSONResponse({"status": "stopping"}, 503)
    return JSONResponse({"status": "ready"})

  async def _metrics(self, request: Request) -> Response:
    return Response(self._counts.text(), media_type=metrics.TYPE)

  async def _model(self, request: Request) -> Response:
    return JSONResponse(self.about)

  async def _refuse(self, request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    headers = {}
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
      headers["Retry-After"] = "1"
    is_read = getattr(request.state, "is_read", False)
    kind = JSONResponse if is_read else _Refusal
    return kind({"error": str(error)}, error.status, headers)

  async def _refuse_path(self, request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = printable(request.scope["path"])
    text = f"there is no {path}: known are {', '.join(self._paths)}"
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
      methods = (error.headers or {}).get("Allow", "").split(", ")
      allowed = ", ".join(sorted(methods))
      text = f"{path} does not take {request.method}: use {allowed}"
    return _Refusal({"error": text}, error.status_code, error.headers)

  async def _fail(self, request: Request, error: Exception) -> Response:
    text = "the server failed: its log has the reason"
    return JSONResponse({"error": text}, HTTPStatus.INTERNAL_SERVER_ERROR)
