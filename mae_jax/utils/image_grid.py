"""Pictures side by side on one sheet, with words above and beside them."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP = 4  # pixels between cells
_LINE = 16  # pixels for a line of words
_LETTERS, _FINE = 12, 9  # pixels, where there is room, and where not
_SMALLEST = 112  # pixels; smaller pictures are enlarged, pixel by pixel
_ALARM = "firebrick"


def draw_grid(
  rows: Sequence[Sequence[np.ndarray | None]],
  titles: Sequence[str],
  words: Sequence[Sequence[str]] | None = None,
  alarms: Sequence[str] = (),
) -> np.ndarray:
  """Lays pictures out for a person.

  Args:
    rows: of pictures, uint8 [H, W, C] of one size; C other than 3 is shown as
      gray, the mean of the channels; None leaves a place empty.
    titles: above the columns, each of one or more lines.
    words: below each picture, of one or more lines; None for none.
    alarms: titles that are to stand out.

  Returns:
    [H', W', 3] uint8.
  """
  first = next(cell for row in rows for cell in row if cell is not None)
  scale = max(1, -(-_SMALLEST // first.shape[1]))
  height, width = first.shape[0] * scale, first.shape[1] * scale
  header = _GAP // 2 + _LINE * max(1 + title.count("\n") for title in titles)
  below = 0
  if words is not None:
    below = _LINE * max(
      (1 + text.count("\n") for row in words for text in row if text),
      default=0,
    )
  step = height + below + _GAP
  canvas = Image.new(
    "RGB",
    (len(titles) * (width + _GAP) + _GAP, header + len(rows) * step),
    "white",
  )
  draw = ImageDraw.Draw(canvas)
  for column, title in enumerate(titles):
    left = _GAP + column * (width + _GAP)
    color = _ALARM if title in alarms else "black"
    _write(draw, (left, 2), title, width, color)
    for number, row in enumerate(rows):
      top = header + number * step
      picture = row[column]
      if picture is not None:
        cell = Image.fromarray(to_rgb(picture))
        cell = cell.resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(cell, (left, top))
      if words is not None:
        text = words[number][column]
        _write(draw, (left, top + height), text, width, "dimgray")
  return np.asarray(canvas)


def to_rgb(picture: np.ndarray) -> np.ndarray:
  """uint8 [H, W, C] -> [H, W, 3]; C other than 3 as the mean, in gray."""
  if picture.shape[-1] == 3:
    return picture
  gray = picture.mean(axis=-1, keepdims=True).round().astype(np.uint8)
  return np.repeat(gray, 3, axis=-1)


def _write(
  draw: ImageDraw.ImageDraw,
  place: tuple[int, int],
  text: str,
  width: int,
  color: str,
) -> None:
  """Writes lines, in smaller letters where needed, or without their middle."""
  for number, line in enumerate(text.split("\n")):
    for size in range(_LETTERS, _FINE - 1, -1):
      font = _font(line, size)
      if draw.textlength(line, font=font) <= width:
        break
    kept = len(line)
    shown = line
    # Names differ at their ends.
    while kept and draw.textlength(shown, font=font) > width:
      kept -= 1
      shown = f"{line[: kept - kept // 2]}...{line[len(line) - kept // 2 :]}"
    draw.text(
      (place[0], place[1] + number * _LINE), shown, fill=color, font=font
    )


def _font(text: str, size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
  """Pillow's narrow one where it has the letters, else Matplotlib's."""
  if text.isascii():
    return ImageFont.load_default(size=size)
  return ImageFont.truetype(
    f"{mpl.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size
  )
