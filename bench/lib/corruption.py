"""Damages files: deletes, empties, truncates, or flips a bit."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Iterator


def damages(
  content: bytes, random_: random.Random, flips: int
) -> Iterator[tuple[str, bytes | None]]:
  """Yields kinds of damage: a name, and new content, or None for no file."""
  yield "absent", None
  yield "empty", b""
  yield "truncated", content[: random_.randrange(len(content))]
  for _ in range(flips):
    yield "bit flipped", flip_bit(content, random_)


def flip_bit(content: bytes, random_: random.Random) -> bytes:
  """Returns the content with one random bit flipped."""
  changed = bytearray(content)
  changed[random_.randrange(len(changed))] ^= 1 << random_.randrange(8)
  return bytes(changed)


def apply(path: pathlib.Path, content: bytes | None) -> None:
  """Writes the content to a file, or deletes the file if it is None."""
  if content is None:
    path.unlink()
  else:
    path.write_bytes(content)
