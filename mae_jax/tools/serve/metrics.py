"""Metrics of the server, in the format of Prometheus."""

import time
from collections.abc import Callable, Collection, MutableMapping
from typing import Any

import prometheus_client as prometheus

TYPE = prometheus.CONTENT_TYPE_LATEST
_OTHER = "other"  # paths that do not exist: one row for all of them
_SECONDS = (
  *(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
)


class Metrics:
  """Counters and histograms of one server."""

  def __init__(self, batch_sizes: Collection[int]):
    self._registry = prometheus.CollectorRegistry()
    prometheus.ProcessCollector(registry=self._registry)
    self._requests = prometheus.Counter(
      "mae_jax_requests",
      "Answered requests.",
      ("path", "status"),
      registry=self._registry,
    )
    self._seconds = prometheus.Histogram(
      "mae_jax_request_seconds",
      "Time from a request's head to the head of its answer.",
      ("path",),
      buckets=_SECONDS,
      registry=self._registry,
    )
    self._batches = prometheus.Histogram(
      "mae_jax_batch_images",
      "Images of a batch, without padding.",
      ("program",),
      buckets=sorted(batch_sizes),
      registry=self._registry,
    )

  def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
    """Adds a gauge that is read when the metrics are."""
    gauge = prometheus.Gauge(f"mae_jax_{name}", text, registry=self._registry)
    gauge.set_function(read)

  def add_batch(self, program: str, images: int) -> None:
    """Counts a batch."""
    self._batches.labels(program).observe(images)

  def text(self) -> bytes:
    """Returns all metrics."""
    return prometheus.generate_latest(self._registry)

  def middleware(self, app: Any, paths: Collection[str]) -> Any:
    """Wraps an ASGI application, whose requests are then counted."""

    async def counted(
      scope: MutableMapping[str, Any], receive: Any, send: Any
    ) -> None:
      began = time.perf_counter()
      path = scope["path"] if scope["path"] in paths else _OTHER

      async def count(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
          self._requests.labels(path, str(message["status"])).inc()
          self._seconds.labels(path).observe(time.perf_counter() - began)
        await send(message)

      await app(scope, receive, count)

    return counted
