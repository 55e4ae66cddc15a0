"""Writes folders of pictures, which appear when they are complete."""

import collections
import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from mae_jax.utils import atomic_write, image_grid

MANIFEST = "made_by.json"
SHEET = "sheet.png"
PAGE_ROWS = 24  # at most, on one sheet of several images


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

  def arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz file of named arrays."""
    with self._open(name) as file:
      np.savez(file, allow_pickle=False, **arrays)

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


def image_folders(names: Sequence[str]) -> dict[str, str]:
  """Returns the folder of each image, named like its file without the suffix.

  Files that differ in the suffix alone keep it: a.png and a.jpg become a_png
  and a_jpg.
  """
  known = collections.Counter(os.path.splitext(name)[0] for name in names)
  folders: dict[str, str] = {}
  used = set(known)
  for name in names:
    folder, suffix = os.path.splitext(name)
    if known[folder] > 1:
      folder = f"{folder}_{suffix[1:]}"
      while folder in used:
        folder += "_"
      used.add(folder)
    folders[name] = folder
  return folders


class Sheets[Item]:
  """The sheets of several images: sheet.png, sheet_2.png, and so on."""

  def __init__(
    self,
    folder: OutputFolder,
    draw: Callable[[Sequence[Item]], np.ndarray],
    rows: int = 1,
  ):
    """Prepares sheets.

    Args:
      folder: where they are written.
      draw: draws the sheet of some images.
      rows: rows of each image.
    """
    self._folder, self._draw = folder, draw
    self._size = max(1, PAGE_ROWS // rows)
    self._items: list[Item] = []
    self._pages = 0

  def add(self, item: Item) -> None:
    """Adds an image."""
    if len(self._items) == self._size:
      self._write()
    self._items.append(item)

  def finish(self, out: str) -> str:
    """Writes the last sheet; names all in a line of text."""
    self._write()
    first = os.path.join(out, SHEET)
    return first if self._pages == 1 else f"{first} to {self._name()}"

  def _write(self) -> None:
    self._pages += 1
    self._folder.png(self._name(), self._draw(self._items))
    self._items = []

  def _name(self) -> str:
    return SHEET if self._pages == 1 else f"sheet_{self._pages}.png"


def as_image(picture: np.ndarray) -> Image.Image:
  """Makes an image of uint8 [H, W, C]; other C than 1 and 3 are averaged."""
  if picture.shape[-1] == 1:
    return Image.fromarray(picture[..., 0])
  return Image.fromarray(image_grid.to_rgb(picture))
