"""Types of command-line flags that refuse wrong values before any work."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable, Collection

from mae_jax.utils.errors import ConfigError

BATCH = 4096  # batch size of the recipes
RESULTS = pathlib.Path(__file__).parents[1] / "results"


def among(known: Collection[str]) -> Callable[[str], list[str]]:
  """Returns a parser of known names, separated by commas."""

  def names(text: str) -> list[str]:
    found = text.split(",")
    for name in found:
      if name not in known:
        raise argparse.ArgumentTypeError(
          f"{name!r} is not known: known are {', '.join(known)}"
        )
    return found

  return names


def whole(least: int = 1, most: int | None = None) -> Callable[[str], int]:
  """Returns a parser of a whole number in a range."""

  def number(text: str) -> int:
    try:
      found = int(text)
    except ValueError:
      raise argparse.ArgumentTypeError(
        f"{text!r} is not a whole number"
      ) from None
    if found < least:
      raise argparse.ArgumentTypeError(f"{found} is below {least}")
    if most is not None and found > most:
      raise argparse.ArgumentTypeError(
        f"{found} is above {most}, the number available here"
      )
    return found

  return number


def multiple(of: int) -> Callable[[str], int]:
  """Returns a parser of a positive multiple of `of`."""
  parse = whole(of)

  def number(text: str) -> int:
    found = parse(text)
    if found % of:
      raise argparse.ArgumentTypeError(
        f"{found} is not a multiple of {of}: write {found // of * of}"
      )
    return found

  return number


def wholes(least: int, most: int) -> Callable[[str], list[int]]:
  """Returns a parser of whole numbers, separated by commas."""
  parse = whole(least, most)
  return lambda text: [parse(each) for each in text.split(",")]


def slices(text: str) -> list[str]:
  """Parses slices of chips, separated by commas.

  Each needs an installed compiler, and its devices must divide the batch.
  """
  from mae_jax.tools.plan import topology

  found = text.split(",")
  for each in found:
    try:
      devices = len(topology.open_topology(each).devices)
    except ConfigError as error:
      raise argparse.ArgumentTypeError(str(error)) from None
    if BATCH % devices:
      raise argparse.ArgumentTypeError(
        f"{each} has {devices} devices, which do not divide {BATCH} images: "
        "choose a slice whose number of devices is a power of 2"
      )
  return found


def page(text: str) -> pathlib.Path:
  """Parses the path of a file to write; its directory must exist."""
  found = pathlib.Path(text)
  if not found.parent.is_dir():
    raise argparse.ArgumentTypeError(
      f"{text!r} cannot be written: there is no directory {found.parent}"
    )
  return found
