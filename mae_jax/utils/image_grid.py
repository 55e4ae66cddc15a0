"""A grid of images on one sheet, with column titles and captions."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP = 4  # pixels between cells
_LINE = 16  # pixels per line of text
_FONT_SIZE, _MIN_FONT_SIZE = 12, 9  # pixels
_MIN_WIDTH = 112  # pixels; smaller images are enlarged by a whole factor
_HIGHLIGHT = "firebrick"


def draw_grid(
  rows: Sequence[Sequence[np.ndarray | None]],
  titles: Sequence[str],
  captions: Sequence[Sequence[str]] | None = None,
  highlighted: Sequence[str] = (),
) -> np.ndarray:
  """Draws a grid of images.

  Args:
    rows: images, uint8 [H, W, C] of one size. If C is not 3, the mean of the
      channels is drawn in gray. None leaves a cell empty.
    titles: titles above the columns, each of one or more lines.
    captions: text below each image, of one or more lines; None for none.
    highlighted: titles to draw in red.

  Returns:
    uint8 [H', W', 3].
  """
  first = next(cell for row in rows for cell in row if cell is not None)
  scale = max(1, -(-_MIN_WIDTH // first.shape[1]))
  height, width = first.shape[0] * scale, first.shape[1] * scale
  header = _GAP // 2 + _LINE * max(1 + title.count("\n") for title in titles)
  below = 0
  if captions is not None:
    below = _LINE * max(
      (1 + text.count("\n") for row in captions for text in row if text),
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
    color = _HIGHLIGHT if title in highlighted else "black"
    _write(draw, (left, 2), title, width, color)
    for number, row in enumerate(rows):
      top = header + number * step
      picture = row[column]
      if picture is not None:
        cell = Image.fromarray(to_rgb(picture))
        cell = cell.resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(cell, (left, top))
      if captions is not None:
        text = captions[number][column]
        _write(draw, (left, top + height), text, width, "dimgray")
  return np.asarray(canvas)


def to_rgb(picture: np.ndarray) -> np.ndarray:
  """Converts uint8 [H, W, C] to [H, W, 3]; if C is not 3, to the gray mean."""
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
  """Writes lines; for a long line shrinks the font, then omits its middle."""
  for number, line in enumerate(text.split("\n")):
    for size in range(_FONT_SIZE, _MIN_FONT_SIZE - 1, -1):
      font = _font(line, size)
      if draw.textlength(line, font=font) <= width:
        break
    kept = len(line)
    shown = line
    # File names differ mostly at their ends.
    while kept and draw.textlength(shown, font=font) > width:
      kept -= 1
      shown = f"{line[: kept - kept // 2]}...{line[len(line) - kept // 2 :]}"
    draw.text(
      (place[0], place[1] + number * _LINE), shown, fill=color, font=font
    )


def _font(text: str, size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
  """Loads Pillow's narrow font for ASCII text, else Matplotlib's.

  Without Matplotlib, letters that Pillow's font lacks are drawn as boxes.
  """
  if text.isascii():
    return ImageFont.load_default(size=size)
  try:
    import matplotlib as mpl
  except ModuleNotFoundError:
    return ImageFont.load_default(size=size)
  return ImageFont.truetype(
    f"{mpl.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size
  )
