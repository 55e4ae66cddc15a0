"""The command: `python -m mae_jax.demo --checkpoint=runs/digits`."""

from __future__ import annotations

import contextlib
import webbrowser

import jax

from mae_jax import config as config_lib
from mae_jax import console, dialects, painter, sharding, tools
from mae_jax.demo import server
from mae_jax.dialects import facts


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
  mesh = sharding.make_mesh(config_lib.Mesh(), jax.devices()[:1])
  hints = dialects.Hints(target=target, insist=target is not None)
  network = painter.Painter(checkpoint, mesh, hints)
  opened = server.Server(network, host, port)
  with opened:
    address = f"http://{host}:{opened.server_port}/"
    if host not in server.LOOPBACK:
      console.warn(
        f"{address} can be reached from other machines, and nobody is asked "
        "who they are"
      )
    tools.say(f"{address} shows the page; Ctrl-C ends it")
    if browser:
      webbrowser.open(address)
    with contextlib.suppress(KeyboardInterrupt):
      opened.serve_forever()
  tools.say("ended")


def parser() -> tools.Parser:
  """The flags."""
  flags = tools.Parser(
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
    choices=tuple(facts.TARGETS),
    help="of weights that do not say what they predict",
  )
  flags.add_argument(
    "--no_browser",
    dest="browser",
    action="store_false",
    help="do not open the page",
  )
  return flags


if __name__ == "__main__":
  tools.main(parser(), run)
