"""Kinds of flags: what is wrong is told before any work, not after hours."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable, Collection

from mae_jax.utils.errors import ConfigError

BATCH = 4096  # of the recipes


def among(known: Collection[str]) -> Callable[[str], list[str]]:
  """Names with commas between them, each of which must be known."""

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
  """A whole number in a range."""

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
        f"{found} is above {most}, which is what there is here"
      )
    return found

  return number


def multiple(of: int) -> Callable[[str], int]:
  """A whole number of so many."""
  one = whole(of)

  def number(text: str) -> int:
    found = one(text)
    if found % of:
      raise argparse.ArgumentTypeError(
        f"{found} is not a multiple of {of}: write {found // of * of}"
      )
    return found

  return number


def wholes(least: int, most: int) -> Callable[[str], list[int]]:
  """Whole numbers with commas between them."""
  one = whole(least, most)
  return lambda text: [one(each) for each in text.split(",")]


def slices(text: str) -> list[str]:
  """Slices of chips with commas between them, that there are compilers for.

  They must share the recipes' batch.
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
        "take one whose number is a power of 2"
      )
  return found


def page(text: str) -> pathlib.Path:
  """A file to be written, in a directory that there is."""
  found = pathlib.Path(text)
  if not found.parent.is_dir():
    raise argparse.ArgumentTypeError(
      f"{text!r} cannot be written: there is no directory {found.parent}"
    )
  return found
