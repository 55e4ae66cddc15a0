"""Runs a command: `python -m mae_jax COMMAND` or `mae-jax COMMAND`."""

from __future__ import annotations

import difflib
import pkgutil
import sys
from collections.abc import Sequence
from typing import NamedTuple

from mae_jax.utils import console


class Command(NamedTuple):
  """A command: the function that its flags are made of, and how it runs.

  Attributes:
    function: MODULE:FUNCTION, imported when the command runs, since some
      modules import TensorFlow.
    text: what the command does.
    cpu: whether it leaves accelerators to other programs.
    interrupted: printed after Ctrl-C or SIGTERM.
  """

  function: str
  text: str
  cpu: bool = False
  interrupted: str = "stopped: nothing is written"


COMMANDS = {
  "train": Command(
    "mae_jax.main:main", "Trains or evaluates what a config names."
  ),
  "evaluate": Command(
    "mae_jax.main:main", "Evaluates a checkpoint: `train` with task=evaluate."
  ),
  "inspect": Command(
    "mae_jax.tools.inspect_data:report",
    "Checks the images of a config and shows samples.",
    interrupted="stopped",
  ),
  "plan": Command(
    "mae_jax.tools.plan.command:plan",
    "Compiles a config for a TPU slice or GPUs; predicts memory and speed.",
    cpu=True,  # the compilers are asked for by name; no device is opened
    interrupted="stopped by Ctrl-C; what is printed above is true",
  ),
  "report": Command(
    "mae_jax.tools.report.command:write",
    "Writes one HTML page about one or more runs.",
  ),
  "runs": Command(
    "mae_jax.tools.runs:show",
    "Lists the runs of a directory with their status and last metrics.",
    cpu=True,
    interrupted="stopped",
  ),
  "reconstruct": Command(
    "mae_jax.tools.reconstruct:write",
    "Reconstructs masked images and writes pictures.",
  ),
  "demo": Command(
    "mae_jax.tools.demo.command:run",
    "Serves a web page that masks and reconstructs an image.",
  ),
  "serve": Command(
    "mae_jax.tools.serve.command:run",
    "Serves predictions, features and reconstructions over HTTP.",
    interrupted="stopped",
  ),
  "features": Command(
    "mae_jax.tools.features:write",
    "Writes the encoder's features of images to a file.",
  ),
  "predict": Command(
    "mae_jax.tools.predict:write", "Prints the most likely classes of images."
  ),
  "neighbors": Command(
    "mae_jax.tools.neighbors:write",
    "Finds the nearest images in feature space.",
  ),
  "attention": Command(
    "mae_jax.tools.attention_maps:write",
    "Writes pictures of the encoder's attention.",
  ),
  "convert": Command(
    "mae_jax.tools.convert:convert",
    "Converts weights from and to facebook, transformers and timm.",
    cpu=True,
  ),
  "export": Command(
    "mae_jax.tools.export.command:write",
    "Exports a network to StableHLO, SavedModel or ONNX.",
    cpu=True,
  ),
}


def usage() -> str:
  """Lists the commands, a line each."""
  width = max(map(len, COMMANDS))
  lines = [f"  {name:{width}}  {x.text}" for name, x in COMMANDS.items()]
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
  console.open_streams()
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
  command = COMMANDS[name]
  try:
    function = pkgutil.resolve_name(command.function)
  except ImportError as error:
    from mae_jax.utils import errors

    missing = errors.missing_extra(error)
    if missing is None or "--debug" in rest:
      raise
    sys.exit(f"error: {missing}")
  if name in ("train", "evaluate"):
    task = ["--config.task=evaluate"] if name == "evaluate" else []
    function([*rest, *task], name)
    return
  # Imported here, because the list of commands needs neither.
  import jax

  from mae_jax.tools import cli

  if command.cpu:
    jax.config.update("jax_platforms", "cpu")
  cli.run(function, name, rest, interrupted=command.interrupted)


def start() -> None:
  """Runs the command of this process; `mae-jax` is this function."""
  from mae_jax.utils import signals

  signals.run_process(main)


if __name__ == "__main__":
  start()
