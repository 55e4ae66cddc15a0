"""The command `python -m mae_jax serve --checkpoint=runs/vit_l`."""

import contextlib
import dataclasses
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http import h11_impl

from mae_jax import conversion
from mae_jax.config import MeshConfig, check_name
from mae_jax.data import prepare
from mae_jax.distributed import sharding
from mae_jax.evals import load_model
from mae_jax.tools import cli, image_stream, web
from mae_jax.tools.serve import app, batching, endpoints, metrics
from mae_jax.utils import console, signals, storage
from mae_jax.utils.version import __version__

_HEAD_SECONDS = 10.0  # to send the head of a request
_DRAIN_SECONDS = 30  # to send the last answers
_MORE_CONNECTIONS = 512  # than requests in progress


def run(
  checkpoint: cli.Path,
  *,
  host: str = "127.0.0.1",
  port: int = 8000,
  pool: cli.Words = ("mean",),
  mask_ratio: cli.Numbers = (),
  image_size: cli.Size | None = None,
  fit: str | None = None,
  batch_size: int = 32,
  max_wait_ms: float = 5.0,
  max_queue: int = 256,
  max_body_mb: float = 16.0,
  max_pixels: int = 1 << 25,
  read_timeout: float = 30.0,
) -> None:
  """Serves predictions, features and reconstructions over HTTP.

  POST an image file to /v1/predict, /v1/features or /v1/reconstruct; GET
  /healthz, /metrics and /v1/model. Requests that arrive together run as one
  batch, on one device. SIGTERM or Ctrl-C answers the requests in progress,
  refuses others, and ends with exit code 0.

  Args:
    checkpoint: a workdir (its newest checkpoint), one of its
      checkpoints/STEP, weights of facebook, transformers or timm,
      hf://ORG/NAME on the Hugging Face Hub, or digits, a small network that
      comes with this package.
    host: the address to listen on; 127.0.0.1 is reached from this machine
      alone.
    port: the port; 0 for any free one.
    pool: the poolings of /v1/features, the first by default: mean of the patch
      tokens, cls token, all tokens, grid, or several as mean,cls.
    mask_ratio: the mask ratios of /v1/reconstruct, the first by default, as
      0.75,0.5; by default the checkpoint's.
    image_size: 224, or height and width as 192,256; by default the
      checkpoint's. Positions are interpolated.
    fit: crop: the middle of each image; squash: all of it; by default as in
      evaluation (data.eval_fit).
    batch_size: images at a time, at most.
    max_wait_ms: milliseconds that an image waits for others while the device
      is free.
    max_queue: requests in progress; more are refused with status 503.
    max_body_mb: megabytes of a request's body.
    max_pixels: pixels of an image.
    read_timeout: seconds to read a request's body.

  Raises:
    ConfigError: if there is no such checkpoint, or the address is taken.
  """
  cli.at_least("batch_size", batch_size)
  cli.at_least("max_queue", max_queue)
  cli.at_least("max_wait_ms", max_wait_ms, 0)
  if fit is not None:
    check_name(prepare.FITS, fit, "--fit")
  limits = app.Limits(
    int(max_body_mb * 1e6), max_pixels, max_queue, read_timeout
  )
  with _bound(host, port) as listener, contextlib.ExitStack() as stack:
    found, title = _load(checkpoint, image_size, fit)
    mesh = sharding.make_mesh(MeshConfig(), sharding.devices()[:1])
    opened = endpoints.open_endpoints(found, mesh, pool, mask_ratio)
    counts = metrics.Metrics(batching.batch_sizes(batch_size))
    batcher = batching.Batcher(
      {k: v for each in opened for k, v in each.programs.items()},
      batch_size,
      max_wait_ms / 1000,
      counts.add_batch,
    )
    about = {"model": title, "version": __version__}
    application = app.Application(
      opened, found.config.data, about, batcher, counts, limits
    )
    stack.callback(application.close)
    server = _Server(application, max_queue)
    address = f"http://{host}:{listener.getsockname()[1]}/"
    web.warn_if_open(host, address)
    signals.exit_on_signals("stopped", stop=server.stop)
    console.info(
      f"{address} serves {title}: {', '.join(each.name for each in opened)}; "
      f"batches of {', '.join(map(str, batcher.sizes))}; Ctrl-C ends it"
    )
    server.run([listener])
  console.info("ended: all accepted requests are answered")


def _load(
  checkpoint: str, image_size: tuple[int, int] | None, fit: str | None
) -> tuple[load_model.LoadedModel, str]:
  """Loads a network with the parts it has; returns it and its title."""
  mesh = sharding.make_mesh(MeshConfig(), sharding.devices()[:1])
  with storage.os_errors(checkpoint):
    conversion.locate(checkpoint)
    checkpoint, name = image_stream.title(checkpoint)
    found = load_model.load(checkpoint, mesh, decoder=None)
  found = load_model.resize(found, image_size, mesh)
  data = prepare.with_fit(found.config.data, fit)
  config = dataclasses.replace(found.config, data=data)
  found = dataclasses.replace(found, config=config)
  return found, f"{name} ({found.description})"


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
  """Binds an address; connections are refused until the server listens."""
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  with socket.socket(family) as listener:
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


class _Server(uvicorn.Server):
  """A server that stops when all requests in progress are answered."""

  def __init__(self, application: app.Application, max_queue: int):
    self._application = application
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
        limit_concurrency=max_queue + _MORE_CONNECTIONS,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
      )
    )

  def capture_signals(self) -> Any:
    """Leaves signals to utils/signals.py."""
    return contextlib.nullcontext()

  def stop(self) -> None:
    """Refuses new requests, and ends after those in progress."""
    self._application.closing = True

  async def on_tick(self, counter: int) -> bool:
    """Checks every 0.1 s whether the server ends."""
    if self._application.closing and not self._application.in_progress:
      self.should_exit = True
    return await super().on_tick(counter)
