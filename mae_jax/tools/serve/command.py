"""The command `python -m mae_jax serve --checkpoint=runs/vit_l`."""

import dataclasses
from collections.abc import Sequence

from mae_jax import conversion
from mae_jax.config import MeshConfig, check_name
from mae_jax.data import prepare
from mae_jax.distributed import sharding
from mae_jax.evals import load_model
from mae_jax.tools import cli, image_stream, web
from mae_jax.tools.serve import app, endpoints, server
from mae_jax.utils import console, signals, storage
from mae_jax.utils.errors import ConfigError
from mae_jax.utils.version import __version__


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
  max_wait_ms: float = 2.0,
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
  for name, value in (
    ("max_body_mb", max_body_mb),
    ("max_pixels", max_pixels),
    ("read_timeout", read_timeout),
  ):
    if not value > 0:
      raise ConfigError(f"--{name}={value} must be above 0")
  limits = app.Limits(
    int(max_body_mb * 1e6), max_pixels, max_queue, read_timeout
  )
  with server.bound(host, port) as listener:
    found, title = _load(checkpoint, image_size, fit)
    with open_application(
      found,
      title,
      limits,
      pools=pool,
      ratios=mask_ratio,
      batch_size=batch_size,
      max_wait=max_wait_ms / 1000,
    ) as application:
      address = f"http://{host}:{listener.getsockname()[1]}/"
      web.warn_if_open(host, address)
      sizes = ", ".join(map(str, application.about["batch_sizes"]))
      text = (
        f"{address} serves {', '.join(application.about['endpoints'])} of "
        f"{title}, in batches of {sizes}; Ctrl-C ends it"
      )
      opened = server.Server(application, lambda: console.info(text))
      signals.exit_on_signals("stopped", stop=opened.stop)
      opened.run([listener])
  console.info("ended: all accepted requests are answered")


def open_application(
  found: load_model.LoadedModel,
  title: str,
  limits: app.Limits,
  *,
  pools: Sequence[str] = ("mean",),
  ratios: Sequence[float] = (),
  batch_size: int = 32,
  max_wait: float = 0.002,
) -> app.Application:
  """Compiles the programs of a network; returns its application.

  Args:
    found: the network, with its decoder if it has one.
    title: its name.
    limits: limits on requests.
    pools: as in `endpoints.open_endpoints`.
    ratios: as in `endpoints.open_endpoints`.
    batch_size: as in `batching.Batcher`.
    max_wait: as in `batching.Batcher`, in seconds.
  """
  mesh = sharding.make_mesh(MeshConfig(), sharding.devices()[:1])
  answers = endpoints.open_endpoints(found, mesh, pools, ratios)
  return app.Application(
    answers,
    found.config.data,
    {"model": title, "version": __version__},
    limits,
    batch_size=batch_size,
    max_wait=max_wait,
  )


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
