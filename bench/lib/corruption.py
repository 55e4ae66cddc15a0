"""Ways in which a file comes to harm."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Iterator


def harms(
  content: bytes, random_: random.Random, flips: int
) -> Iterator[tuple[str, bytes | None]]:
  """What a file may hold afterwards: a name, and bytes or None for no file."""
  yield "absent", None
  yield "empty", b""
  yield "truncated", content[: random_.randrange(len(content))]
  for _ in range(flips):
    yield "bit flipped", flipped(content, random_)


def flipped(content: bytes, random_: random.Random) -> bytes:
  """The content with one bit turned over."""
  changed = bytearray(content)
  changed[random_.randrange(len(changed))] ^= 1 << random_.randrange(8)
  return bytes(changed)


def apply(path: pathlib.Path, content: bytes | None) -> None:
  """Gives a file this content."""
  if content is None:
    path.unlink()
  else:
    path.write_bytes(content)
