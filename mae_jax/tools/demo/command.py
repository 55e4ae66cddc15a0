"""The command: `python -m mae_jax demo --checkpoint=runs/digits`."""

from __future__ import annotations

import contextlib
import webbrowser
from collections.abc import Sequence

import jax

from mae_jax import conversion
from mae_jax.config import MeshConfig
from mae_jax.conversion import model_info
from mae_jax.distributed import sharding
from mae_jax.tools import cli, reconstructor
from mae_jax.tools.demo import server
from mae_jax.utils import console


def run(
  checkpoint: str,
  *,
  host: str = "127.0.0.1",
  port: int = 8642,
  target: str | None = None,
  browser: bool = True,
) -> None:
  """Serves the page until Ctrl-C.

  Args:
    checkpoint: see `dialects.load_any`.
    host: the address of an interface.
    port: 0 for any that is free.
    target: of weights that do not say what they predict: norm_pix or raw.
    browser: whether to open the page.

  Raises:
    ConfigError: if there is no such network, or it cannot listen there.
  """
  server.check_port(port)  # before a network is read
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  hints = conversion.ModelOverrides(target=target, insist=target is not None)
  network = reconstructor.Reconstructor(checkpoint, mesh, hints)
  opened = server.Server(network, host, port)
  with opened:
    address = f"http://{host}:{opened.server_port}/"
    if host not in server.LOOPBACK:
      console.warn(
        f"{address} can be reached from other machines, and nobody is asked "
        "who they are"
      )
    cli.info(f"{address} shows the page; Ctrl-C ends it")
    if browser:
      webbrowser.open(address)
    with contextlib.suppress(KeyboardInterrupt):
      opened.serve_forever()
  cli.info("ended")


def parser() -> cli.Parser:
  """The flags."""
  flags = cli.Parser(
    "demo",
    "A page on this machine on which one drops an image, hides patches and "
    "sees what the network makes of them. Nothing is written to disk.",
  )
  flags.add_checkpoint()
  flags.add_argument(
    "--host",
    default="127.0.0.1",
    help="the address to listen on (default: 127.0.0.1, which only this "
    "machine reaches)",
  )
  flags.add_argument(
    "--port", type=int, default=8642, help="0 for any free one (default: 8642)"
  )
  flags.add_argument(
    "--target",
    choices=tuple(model_info.TARGETS),
    help="of weights that do not say what they predict",
  )
  flags.add_argument(
    "--no_browser",
    dest="browser",
    action="store_false",
    help="do not open the page",
  )
  return flags


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command."""
  cli.main(parser(), run, argv)
