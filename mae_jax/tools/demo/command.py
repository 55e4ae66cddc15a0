"""The command `python -m mae_jax demo --checkpoint=runs/digits`."""

import webbrowser

from mae_jax.tools import cli, web
from mae_jax.tools.demo import server, services
from mae_jax.utils import console, signals


def run(
  checkpoint: cli.Path,
  *,
  host: str = "127.0.0.1",
  port: int = 8642,
  target: str | None = None,
  image_size: cli.Size | None = None,
  browser: bool = True,
) -> None:
  """Serves a web page that reconstructs or classifies images.

  With a pre-trained network, you mask patches and see them reconstructed. With
  a classifier, you see the most likely classes of an image. The page runs on
  this machine; nothing is written to disk.

  Args:
    checkpoint: a workdir (its newest checkpoint), one of its
      checkpoints/STEP, weights of facebook, transformers or timm,
      hf://ORG/NAME on the Hugging Face Hub, or digits, a small network that
      comes with this package.
    host: the address to listen on; 127.0.0.1 is reached from this machine
      alone.
    port: the port; 0 for any free one.
    target: norm_pix or raw, for weights that do not say what they predict.
    image_size: 224, or height and width as 192,256; by default the
      checkpoint's. Positions are interpolated.
    browser: do not open the page in a browser.

  Raises:
    ConfigError: if there is no such checkpoint, or the address is taken.
  """
  web.check_port(port)  # before the weights are loaded
  service = services.open_service(checkpoint, target, image_size)
  opened = server.Server(service, host, port)
  with opened:
    address = f"http://{host}:{opened.server_port}/"
    web.warn_if_open(host, address)
    console.info(f"{address} shows the page; Ctrl-C ends it")
    if browser:
      webbrowser.open(address)
    signals.exit_on_signals("stopped", stop=opened.shutdown)
    opened.serve_forever()
  console.info("ended")
