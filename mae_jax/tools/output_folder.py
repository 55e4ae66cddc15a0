"""Writes folders of pictures, which appear when they are complete."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from mae_jax.utils import atomic_write, image_grid

MANIFEST = "made_by.json"
SHEET = "sheet.png"


class OutputFolder:
  """A folder that a command fills with `files`; see `replacing`."""

  def __init__(self, folder: epath.Path):
    self._folder = folder
    self.files: list[str] = []

  def png(self, name: str, picture: np.ndarray) -> None:
    """Writes a picture, uint8 [H, W, C]; see `as_image`."""
    with self._open(name) as file:
      as_image(picture).save(file, format="png")

  def table(self, name: str, rows: Iterable[Sequence[Any]]) -> None:
    """Writes a .csv file, whose first row names the columns."""
    with self._open(name) as file:
      file.write(atomic_write.csv_rows(rows))

  @contextlib.contextmanager
  def _open(self, name: str) -> Iterator[Any]:
    path = self._folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
      yield file
    self.files.append(name)


@contextlib.contextmanager
def replacing(
  out: str, tool: str, settings: Mapping[str, Any]
) -> Iterator[OutputFolder]:
  """Opens a folder that appears when the block ends without an error.

  Args:
    out: the folder. One that the same command made is replaced.
    tool: name of the command.
    settings: settings to record in MANIFEST, as JSON content.

  Raises:
    ConfigError: if it cannot be made, or holds other files.
  """

  def is_ours(folder: epath.Path) -> bool:
    try:
      content = json.loads((folder / MANIFEST).read_bytes())
      known = {MANIFEST, *content["files"]}
      tools = content["tool"]
    except (OSError, ValueError, KeyError, TypeError):
      return False
    found = (
      os.path.relpath(os.path.join(above, name), folder)
      for above, _, names in os.walk(folder)
      for name in names
    )
    return tools == tool and known.issuperset(found)

  with atomic_write.atomic_folder(out, is_ours) as folder:
    album = OutputFolder(folder)
    yield album
    content = {"tool": tool, "settings": dict(settings), "files": album.files}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n")


def as_image(picture: np.ndarray) -> Image.Image:
  """Makes an image of uint8 [H, W, C]; other C than 1 and 3 are averaged."""
  if picture.shape[-1] == 1:
    return Image.fromarray(picture[..., 0])
  return Image.fromarray(image_grid.to_rgb(picture))
