"""What the tools share: flags, errors, and the stream of those with images.

A tool is a function of the flags; `main` calls it and says in one line what
went wrong.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import jax
import numpy as np
import tqdm
from absl import logging
from etils import epath
from jax.sharding import Mesh

from mae_jax import conversion
from mae_jax.config import DataConfig
from mae_jax.distributed import sharding
from mae_jax.utils import console, errors, signals, storage
from mae_jax.utils.errors import ConfigError

if TYPE_CHECKING:
  from mae_jax.data import sources


class Parser(argparse.ArgumentParser):
  """The flags that every tool has; a mistake in them is one line."""

  def __init__(self, name: str, description: str):
    """Adds the flags of the command `python -m mae_jax NAME`."""
    super().__init__(
      prog=f"python -m mae_jax {name}",
      description=description,
      allow_abbrev=False,
    )
    self.add_argument(
      "--debug", action="store_true", help="show where an error was raised"
    )

  def add_checkpoint(self) -> None:
    """Adds the flag that every tool but evaluation has."""
    self.add_argument(
      "--checkpoint",
      required=True,
      type=os.path.expanduser,
      help="a workdir, of which the newest checkpoint is taken, one of its "
      "checkpoints/STEP, or weights of the reference, transformers or timm",
    )

  def add_images(self) -> None:
    """Adds the flags of a tool that goes through images."""
    self.add_checkpoint()
    self.add_argument(
      "--images",
      required=True,
      type=os.path.expanduser,
      help="one image, or a folder of them with all its folders; they are "
      "prepared as in evaluation of the checkpoint's run",
    )
    self.add_argument(
      "--batch_size",
      type=int,
      default=64,
      help="images at a time over all devices, rounded up to a multiple of "
      "their number (default: 64)",
    )

  def add_folder(self) -> None:
    """Adds the flag of a tool that fills a folder with pictures."""
    self.add_argument(
      "--out",
      required=True,
      type=os.path.expanduser,
      help="a folder, which appears when all is done; one that this command "
      "made is replaced",
    )

  def add_pictures(self) -> None:
    """Adds the flags of a tool that fills a folder with pictures of images."""
    self.add_argument(
      "--images",
      required=True,
      type=os.path.expanduser,
      help="one image, or a folder of them with all its folders",
    )
    self.add_folder()
    self.add_argument(
      "--fit",
      default="crop",
      help="crop: the middle of each image, as in evaluation; squash: all of "
      "it (default: crop)",
    )

  def add_features(self) -> None:
    """Adds the flags that say which features are meant."""
    self.add_argument(
      "--pool",
      help="mean of the patch tokens, the cls token, or all tokens with the "
      "class token first (default: mean)",
    )
    self.add_argument(
      "--layer",
      type=int,
      help="the block after which tokens are taken, 1 for the first (default: "
      "the last). Tokens of the last block pass the encoder's final norm, if "
      "it has one; those of earlier blocks are raw. An encoder that was "
      "fine-tuned with mean pooling has no final norm: its last tokens are raw "
      "too, but their mean passes the norm in front of the head (fc_norm)",
    )
    self.add_argument(
      "--image_size",
      type=size,
      help="224, or height and width as 192,256 (default: the checkpoint's); "
      "positions are interpolated, as in fine-tuning",
    )

  def error(self, message: str) -> NoReturn:
    """Ends the program, as any other mistake does."""
    sys.exit(f"error: {message}; --help says what there is")


def size(text: str) -> tuple[int, int]:
  """Reads the flag of an image size, as "224" or "192,256"."""
  try:
    sides = [int(side) for side in text.strip("()").split(",")]
    height, width = sides * 2 if len(sides) == 1 else sides
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"{text!r} is no size: write 224, or height and width as 192,256"
    ) from None
  return height, width


def main(
  parser: Parser, work: Callable[..., None], argv: Sequence[str] | None = None
) -> None:
  """Runs a tool.

  Args:
    parser: of its flags.
    work: the tool, called with the flags' values by name, but for --debug.
    argv: the flags; those of the command line if None.
  """
  settings = vars(parser.parse_args(argv))
  debug = settings.pop("debug")
  # As in `main.main`.
  logging.set_verbosity(logging.FATAL)
  # So that what is half written is taken away.
  signals.raise_at_once()
  try:
    work(**settings)
  except KeyboardInterrupt:
    console.final_message("stopped: nothing is written")
    signals.leave(128 + signal.SIGINT)
  except Exception as error:
    line = _explain(error, "batch_size" in settings)
    if debug or line is None:
      raise
    sys.exit(f"error: {line}")


def _explain(error: Exception, has_batch: bool) -> str | None:
  if errors.is_out_of_memory(error):
    # The remedies of `errors` are those of training.
    remedy = "take a smaller --batch_size" if has_batch else "free some"
    return f"out of memory: {console.first_line(error)}: {remedy}"
  return errors.explain(error)


def at_least(name: str, value: int, least: int = 1) -> None:
  """Raises ConfigError for a flag that is smaller."""
  if value < least:
    raise ConfigError(f"--{name}={value} must be at least {least}")


def lines(path: str, flag: str) -> list[str]:
  """The lines of a text file with the name of a class each.

  Raises:
    ConfigError: if it cannot be read.
  """
  try:
    with storage.os_errors(path):
      text = epath.Path(path).read_bytes().decode("utf-8-sig")
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, "strerror", None) or error
    raise ConfigError(
      f"{flag}={path} cannot be read ({reason}): name a text file with "
      "the name of a class a line"
    ) from error
  found = [line.strip() for line in text.strip().splitlines()]
  if "" in found:
    raise ConfigError(
      f"{flag}={path} has nothing in line {1 + found.index('')}: write the "
      "name of a class on every line"
    )
  return found


def check(checkpoint: str, images: str, batch_size: int) -> None:
  """What can be said at once of the flags that every tool has.

  Raises:
    ConfigError: if there is no checkpoint or image, or no batch.
  """
  at_least("batch_size", batch_size)
  with storage.os_errors(checkpoint):
    conversion.locate(checkpoint)
  with storage.os_errors(images):
    if not images or not epath.Path(images).exists():
      raise ConfigError(f"--images={images}: there is no such folder or file")


def check_apart(images: str, out: str) -> None:
  """Refuses a folder of pictures that is, holds or lies in that of the images.

  The next run would take them for images, or they would replace the images.

  Raises:
    ConfigError: with what to name.
  """
  if storage.is_remote(images):
    return
  one, other = (pathlib.Path(os.path.realpath(x)) for x in (images, out))
  if not one.is_dir():
    one = one.parent
    inside = other == one or other in one.parents
  else:
    inside = other == one or other in one.parents or one in other.parents
  if inside:
    raise ConfigError(
      f"--out={out} and --images={images} lie in each other: name a folder for "
      "the pictures that is apart from the images"
    )


def open_images(path: str, data: DataConfig) -> sources.Indexed:
  """The images of --images.

  Raises:
    ConfigError: if there is none.
  """
  # TensorFlow takes seconds to import, and a wrong flag is told before.
  from mae_jax.data.sources import files

  return files.open_files(path, data)


def stream(
  apply: Callable[[Any, jax.Array], Any],
  params: Any,
  source: sources.Indexed,
  data: DataConfig,
  *,
  mesh: Mesh,
  batch_size: int,
) -> Iterator[tuple[Any, np.ndarray]]:
  """Shows each image to a network once, prepared as in evaluation.

  Args:
    apply: jitted, from parameters and uint8 images [B, H, W, C] to a tree of
      [B, ...].
    params: its first argument.
    source: the images; those that cannot be read are named in warnings.
    data: how they are prepared.
    mesh: the devices.
    batch_size: of the images at a time, see `Parser`.

  Yields:
    For the next n images, in order: the tree of [n, ...], and bool [n], False
    for those that cannot be read, whose values mean nothing.

  Raises:
    ConfigError: at the end, if no image could be read.
  """
  from mae_jax.data import pipeline
  from mae_jax.data.bad_images import BadImages

  left = source.num_examples
  # A few images need no full batch.
  size = -(-min(batch_size, left) // mesh.size) * mesh.size
  batches = pipeline.eval_batches(
    source,
    data,
    batch_size=size,
    rows=sharding.local_rows(mesh, size),
    unreadable=BadImages(),
  )
  anything = False
  with progress_bar(left) as bar:
    for batch in sharding.prefetch(mesh, batches, size, ahead=1):
      with jax.set_mesh(mesh):
        out = apply(params, batch["image"])
      out, readable = jax.device_get((out, batch["readable"]))
      real = min(left, size)  # the last batch is padded
      out, readable = jax.tree.map(lambda x, n=real: x[:n], (out, readable))
      anything |= readable.any()
      left -= real
      yield out, readable
      bar.update(real)
  if not anything:
    raise ConfigError(
      f"no image can be read, of {source.num_examples}: the warnings above say "
      "why; mend or replace them"
    )


def progress_bar(total: int) -> tqdm.tqdm:
  """On standard error, of images."""
  return tqdm.tqdm(
    total=total,
    unit="image",
    file=console.STDERR,
    dynamic_ncols=True,
    # A log file need not hold every movement of the bar.
    mininterval=0.2 if _is_terminal(sys.stderr) else 20,
  )


def info(text: str) -> None:
  """Prints to standard output without breaking the progress bar."""
  # A name that the stream has no letters for is escaped.
  encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
  text = text.encode(encoding, "backslashreplace").decode(encoding)
  if _is_terminal(sys.stdout) and _is_terminal(sys.stderr):
    with tqdm.tqdm.external_write_mode(file=console.STDERR):
      console.info(text)
  else:
    console.info(text)


def _is_terminal(stream: Any) -> bool:
  return stream is not None and stream.isatty()  # None: it is closed


def readable(number: int, total: int) -> str:
  """How many images something was made of, as part of a line."""
  if number == total:
    return count(number, 0)
  return f"{number} of {total} images ({total - number} cannot be read)"


def count(number: int, unreadable: int) -> str:
  """How many images there were, as part of a line."""
  text = f"{number} image{'' if number == 1 else 's'}"
  return f"{text} ({unreadable} cannot be read)" if unreadable else text
