"""Finding of one photograph in two sets of images, by small thumbnails.

Thumbnails are compared by their correlation, which brightness and contrast do
not change. Flipped, rotated and cropped copies are not found.
"""

import numpy as np
from PIL import Image

SIDE = 16  # of a thumbnail
# Copies correlate more: JPEG of quality 30, or brighter by 20 %. Neighboring
# pieces of a blue sky reach 0.98, and the most alike digits of 8 x 8 0.989.
ALIKE = 0.99
_CELL = 16  # pixels that are averaged to one of a thumbnail, each way
_BLOCK = 1 << 26  # correlations computed at a time, of 4 bytes


def thumbnail(pixels: np.ndarray) -> np.ndarray:
  """Makes a gray thumbnail of full contrast.

  Args:
    pixels: uint8 or float32 from 0 to 255, [H, W, C].

  Returns:
    uint8 [SIDE * SIDE]; all 0 if the image has hardly any contrast.
  """
  size = (SIDE * _CELL, SIDE * _CELL)
  planes = [
    Image.fromarray(np.ascontiguousarray(plane)).resize(
      size, Image.Resampling.BOX
    )
    for plane in np.moveaxis(pixels, -1, 0)
  ]
  gray = np.mean([np.asarray(plane) for plane in planes], axis=0)
  cells = gray.reshape(SIDE, _CELL, SIDE, _CELL).mean(axis=(1, 3)).ravel()
  low, high = cells.min(), cells.max()
  if high - low < 1:
    return np.zeros(SIDE * SIDE, np.uint8)
  return np.rint((cells - low) * (255 / (high - low))).astype(np.uint8)


def find(first: np.ndarray, second: np.ndarray) -> list[tuple[int, int]]:
  """Finds the images of one set that another set has too.

  Args:
    first: uint8 [M, SIDE * SIDE], thumbnails.
    second: uint8 [N, SIDE * SIDE], thumbnails.

  Returns:
    Indices into `first` and `second`: for each image with a copy, the copy that
    is most alike. The most alike pairs come first.
  """
  best = np.full(len(first), -1.0, np.float32)
  place = np.zeros(len(first), np.int64)
  units = _unit(first)
  step = max(_BLOCK // max(len(first), 1), 1)
  for start in range(0, len(second), step):
    found = units @ _unit(second[start : start + step]).T  # [M, step]
    index = found.argmax(axis=1)
    value = found[np.arange(len(first)), index]
    better = value > best
    best[better], place[better] = value[better], start + index[better]
  order = np.argsort(-best, kind="stable")[: int((best >= ALIKE).sum())]
  return [(int(k), int(place[k])) for k in order]


def _unit(thumbnails: np.ndarray) -> np.ndarray:
  """Returns float32 [N, ...] of mean 0 and norm 1; 0 without contrast."""
  centered = thumbnails.astype(np.float32)
  centered -= centered.mean(axis=1, keepdims=True)
  norm = np.linalg.norm(centered, axis=1, keepdims=True)
  return centered / np.maximum(norm, 1)
