"""Runs a command: `python -m mae_jax COMMAND` or `mae-jax COMMAND`."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

# Name: the module with its `main`, and what the command does. A module is
# imported when its command runs, since some of them import TensorFlow.
COMMANDS = {
  "train": ("mae_jax.main", "Trains or evaluates what a config names."),
  "evaluate": (
    "mae_jax.main",
    "Evaluates a checkpoint: `train` with task=evaluate.",
  ),
  "inspect": (
    "mae_jax.tools.inspect_data",
    "Checks the images of a config and shows samples.",
  ),
  "plan": (
    "mae_jax.tools.plan.command",
    "Compiles a config for a TPU slice or GPUs; predicts memory and speed.",
  ),
  "report": (
    "mae_jax.tools.report.command",
    "Writes one HTML page about one or more runs.",
  ),
  "reconstruct": (
    "mae_jax.tools.reconstruct",
    "Reconstructs masked images and writes pictures.",
  ),
  "demo": (
    "mae_jax.tools.demo.command",
    "Serves a web page that masks and reconstructs an image.",
  ),
  "features": (
    "mae_jax.tools.features",
    "Writes the encoder's features of images to a file.",
  ),
  "predict": (
    "mae_jax.tools.predict",
    "Prints the most likely classes of images.",
  ),
  "neighbors": (
    "mae_jax.tools.neighbors",
    "Finds the nearest images in feature space.",
  ),
  "attention": (
    "mae_jax.tools.attention_maps",
    "Writes pictures of the encoder's attention.",
  ),
  "convert": (
    "mae_jax.tools.convert",
    "Converts weights from and to facebook, transformers and timm.",
  ),
  "export": (
    "mae_jax.tools.export.command",
    "Exports an encoder or a classifier to StableHLO or SavedModel.",
  ),
}


def usage() -> str:
  """Lists the commands, a line each."""
  width = max(map(len, COMMANDS))
  lines = [f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()]
  return "\n".join(
    [
      "usage: mae-jax COMMAND [--help] [--flag=value ...]",
      "       python -m mae_jax COMMAND [--help] [--flag=value ...]",
      "",
      *lines,
    ]
  )


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command that the first argument names.

  Raises:
    SystemExit: with one line, if there is no such command.
  """
  name, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
  if name in ("--help", "-h", "help", "--helpfull"):
    print(usage())
    return
  if name not in COMMANDS:
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    sys.exit(
      f"error: {name!r} is not a command: {hint}known are {', '.join(COMMANDS)}"
    )
  module = importlib.import_module(COMMANDS[name][0])
  if name == "evaluate":
    module.main([*rest, "--config.task=evaluate"], name)
  else:
    module.main(rest)


if __name__ == "__main__":
  main()
