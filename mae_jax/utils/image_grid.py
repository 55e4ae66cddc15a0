"""A grid of images on one sheet, with a heading, titles and captions."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mae_jax.utils import colormaps

_GAP = 4  # pixels between cells
_LINE = 16  # pixels per line of text
_FONT_SIZE = 12  # pixels
_MIN_WIDTH = 128  # pixels; smaller images are enlarged by a whole factor
_HIGHLIGHT = "firebrick"
_PAPER, _INK = 232, 120  # of pixels without content, and of lines on them
_PERIOD, _THICKNESS = 8, 2  # of the diagonal lines, in pixels
_SCALE = (128, 10)  # width and height of a color scale, in pixels


@dataclasses.dataclass(frozen=True)
class Cell:
  """An image of which some pixels have no content.

  Attributes:
    picture: uint8 [H, W, C].
    hatched: bool [H, W], pixels to replace by diagonal lines; None for none.
    blank: bool [H, W], pixels to replace by plain light gray; None for none.
  """

  picture: np.ndarray
  hatched: np.ndarray | None = None
  blank: np.ndarray | None = None

  def draw(self, scale: int = 1) -> np.ndarray:
    """Draws the image, enlarged by a whole factor, with lines on top.

    Returns:
      uint8 [scale H, scale W, C].
    """
    picture = _enlarge(self.picture, scale)
    if self.blank is not None:
      where = _enlarge(self.blank[..., None], scale)
      picture = np.where(where, np.uint8(_PAPER), picture)
    if self.hatched is not None:
      where = _enlarge(self.hatched[..., None], scale)
      rows, columns = np.arange(where.shape[0]), np.arange(where.shape[1])
      line = (rows[:, None] + columns)[..., None] % _PERIOD < _THICKNESS
      hatch = np.where(line, np.uint8(_INK), np.uint8(_PAPER))
      picture = np.where(where, hatch, picture)
    return picture


@dataclasses.dataclass(frozen=True)
class ColorScale:
  """A strip of colors below a sheet, which says what they mean.

  Attributes:
    colors: a name of `colormaps`.
    low: text for the first color.
    high: text for the last color.
  """

  colors: str
  low: str
  high: str


def draw_grid(
  rows: Sequence[Sequence[np.ndarray | Cell | None]],
  titles: Sequence[str],
  captions: Sequence[Sequence[str]] | None = None,
  *,
  heading: str = "",
  highlighted: Sequence[str] = (),
  scale: ColorScale | None = None,
  background: str = "white",
) -> np.ndarray:
  """Draws a grid of images.

  Lines of text that are too long are wrapped, and long names lose their middle.

  Args:
    rows: images, uint8 [H, W, C] of one size. If C is not 3, the mean of the
      channels is drawn in gray. None leaves a cell empty.
    titles: titles above the columns, each of one or more lines.
    captions: text below each image, of one or more lines; None for none.
    heading: text above all.
    highlighted: titles to draw in red.
    scale: the color scale to draw at the bottom.
    background: color between the images, as Pillow names it.

  Returns:
    uint8 [H', W', 3].
  """
  first = next(cell for row in rows for cell in row if cell is not None)
  shape = first.picture.shape if isinstance(first, Cell) else first.shape
  factor = max(1, -(-_MIN_WIDTH // shape[1]))
  height, width = shape[0] * factor, shape[1] * factor
  total = len(titles) * (width + _GAP) + _GAP
  above = _wrap(heading, total - 2 * _GAP)
  columns = [_wrap(title, width) for title in titles]
  start = _GAP // 2 + _LINE * len(above) + _GAP * bool(above)
  header = start + _LINE * max(map(len, columns))
  texts = [
    [_wrap(text, width) for text in row]
    for row in captions or [[""] * len(titles)] * len(rows)
  ]
  below = _LINE * max(len(text) for row in texts for text in row)
  step = height + below + _GAP
  end = header + len(rows) * step
  bottom = end + (_LINE + _GAP) * (scale is not None)
  canvas = Image.new("RGB", (total, bottom), background)
  draw = ImageDraw.Draw(canvas)
  _write(draw, (_GAP, 2), above, "black")
  for column, (title, lines) in enumerate(zip(titles, columns, strict=True)):
    left = _GAP + column * (width + _GAP)
    color = _HIGHLIGHT if title in highlighted else "black"
    _write(draw, (left, start), lines, color)
    for number, row in enumerate(rows):
      top = header + number * step
      cell = row[column]
      if cell is not None:
        cell = cell if isinstance(cell, Cell) else Cell(cell)
        picture = to_rgb(cell.draw(factor))
        canvas.paste(Image.fromarray(picture), (left, top))
      place = (left, top + height)
      _write(draw, place, texts[number][column], "dimgray")
  if scale is not None:
    _draw_scale(canvas, draw, end, scale)
  return np.asarray(canvas)


def to_rgb(picture: np.ndarray) -> np.ndarray:
  """Converts uint8 [H, W, C] to [H, W, 3]; if C is not 3, to the gray mean."""
  if picture.shape[-1] == 3:
    return picture
  gray = picture.mean(axis=-1, keepdims=True).round().astype(np.uint8)
  return np.repeat(gray, 3, axis=-1)


def _enlarge(picture: np.ndarray, scale: int) -> np.ndarray:
  return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def _draw_scale(
  canvas: Image.Image, draw: ImageDraw.ImageDraw, top: int, scale: ColorScale
) -> None:
  """Draws a strip of colors between the texts of its ends."""
  width, height = _SCALE
  colors = colormaps.apply(scale.colors, np.linspace(0, 1, width))
  strip = np.round(255 * colors).astype(np.uint8)[None].repeat(height, axis=0)
  left = _GAP + round(draw.textlength(scale.low, font=_font(scale.low))) + _GAP
  _write(draw, (_GAP, top), [scale.low], "dimgray")
  canvas.paste(Image.fromarray(strip), (left, top + 3))
  _write(draw, (left + width + _GAP, top), [scale.high], "dimgray")


def _write(
  draw: ImageDraw.ImageDraw,
  place: tuple[int, int],
  lines: Sequence[str],
  color: str,
) -> None:
  for number, line in enumerate(lines):
    at = (place[0], place[1] + number * _LINE)
    draw.text(at, line, fill=color, font=_font(line))


def _wrap(text: str, width: int) -> list[str]:
  """Breaks text into lines of at most `width` pixels; [] if there is none."""
  if not text:
    return []
  lines: list[str] = []
  for paragraph in text.split("\n"):
    line = ""
    for word in paragraph.split(" "):
      longer = f"{line} {word}" if line else word
      if _length(longer) <= width:
        line = longer
        continue
      if line:
        lines.append(line)
      line = _shorten(word, width)
    lines.append(line)
  return lines


def _shorten(word: str, width: int) -> str:
  """Replaces the middle of a word that is too long for a line."""
  kept, shown = len(word), word
  # File names differ mostly at their ends.
  while kept and _length(shown) > width:
    kept -= 1
    shown = f"{word[: kept - kept // 2]}...{word[len(word) - kept // 2 :]}"
  return shown


def _length(text: str) -> float:
  return _font(text).getlength(text)


def _font(text: str) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
  """Loads Pillow's narrow font for ASCII text, else Matplotlib's.

  Without Matplotlib, letters that Pillow's font lacks are drawn as boxes.
  """
  if text.isascii():
    return ImageFont.load_default(size=_FONT_SIZE)
  try:
    import matplotlib as mpl
  except ModuleNotFoundError:
    return ImageFont.load_default(size=_FONT_SIZE)
  return ImageFont.truetype(
    f"{mpl.get_data_path()}/fonts/ttf/DejaVuSans.ttf", _FONT_SIZE
  )
