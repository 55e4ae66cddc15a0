"""RandAugment as the reference's timm version has it: m9-mstd0.5-inc1.

Two operations of fifteen, drawn with replacement, each applied half of the time
with a severity that grows with the magnitude (Cubuk et al. 2020, arXiv
1909.13719). The operations are Pillow's, one call each; what is left to say
here is which of them, and how severe.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

LAYERS = 2
PROB = 0.5
LARGEST = 10.0
RAND_AUGMENT_DRAWS = 4 * LAYERS  # which, whether, how severe, which direction

_ROTATE = 30.0  # degrees
_ENHANCE = 0.9
_SHEAR = 0.3
_TRANSLATE = 0.45  # of the side
_SOLARIZE_ADD = 110

_NORMAL = statistics.NormalDist()

# (image, severity in 0..1, direction +-1, fill) -> image
_Operation = Callable[
  [Image.Image, float, int, int | tuple[int, ...]], Image.Image
]


def rand_augment(
  image: np.ndarray,
  draws: np.ndarray,
  *,
  magnitude: float,
  std: float,
  fill: tuple[int, ...],
) -> np.ndarray:
  """Augments one image.

  Args:
    image: uint8 [H, W, 1 or 3].
    draws: [RAND_AUGMENT_DRAWS] uniform in [0, 1).
    magnitude: mean severity, of 10.
    std: deviation of the severity, which is cut off at 0 and 10.
    fill: a value a channel, for what comes from outside the image.

  Returns:
    uint8 of the same shape.
  """
  gray = image.shape[-1] == 1
  picture = Image.fromarray(image[..., 0] if gray else image)
  filled = fill[0] if gray else fill
  for which, whether, severity, direction in draws.reshape(LAYERS, 4):
    if whether >= PROB:
      continue
    level = magnitude
    if std:
      level += std * _NORMAL.inv_cdf(min(max(severity, 1e-9), 1 - 1e-9))
    level = min(max(level, 0.0), LARGEST) / LARGEST
    operation = _OPERATIONS[int(which * len(_OPERATIONS))]
    picture = operation(picture, level, 1 if direction < 0.5 else -1, filled)
  return np.asarray(picture).reshape(image.shape)


def _affine(
  image: Image.Image, matrix: tuple[float, ...], fill: int | tuple[int, ...]
) -> Image.Image:
  return image.transform(
    image.size,
    Image.Transform.AFFINE,
    matrix,
    resample=Image.Resampling.BICUBIC,
    fillcolor=fill,
  )


def _rotate(image, level, sign, fill):
  return image.rotate(
    sign * level * _ROTATE,
    resample=Image.Resampling.BICUBIC,
    fillcolor=fill,
  )


def _shear_x(image, level, sign, fill):
  return _affine(image, (1, sign * level * _SHEAR, 0, 0, 1, 0), fill)


def _shear_y(image, level, sign, fill):
  return _affine(image, (1, 0, 0, sign * level * _SHEAR, 1, 0), fill)


def _translate_x(image, level, sign, fill):
  shift = sign * level * _TRANSLATE * image.size[0]
  return _affine(image, (1, 0, shift, 0, 1, 0), fill)


def _translate_y(image, level, sign, fill):
  shift = sign * level * _TRANSLATE * image.size[1]
  return _affine(image, (1, 0, 0, 0, 1, shift), fill)


def _posterize(image, level, *_):
  # Of no bit nothing is left, which Pillow's own function refuses by now.
  mask = 256 - (1 << (4 + int(level * 4)))
  return image.point([i & mask for i in range(256)] * len(image.getbands()))


def _solarize_add(image, level, *_):
  add = min(128, int(level * _SOLARIZE_ADD))
  table = [min(255, i + add) if i < 128 else i for i in range(256)]
  return image.point(table * len(image.getbands()))


def _enhancing(kind: type) -> _Operation:
  def operation(image, level, sign, fill):
    return kind(image).enhance(1 + sign * level * _ENHANCE)

  return operation


# In timm's order; "increasing" where timm has two ways.
OPERATIONS: dict[str, _Operation] = {
  "AutoContrast": lambda image, *_: ImageOps.autocontrast(image),
  "Equalize": lambda image, *_: ImageOps.equalize(image),
  "Invert": lambda image, *_: ImageOps.invert(image),
  "Rotate": _rotate,
  "Posterize": _posterize,
  "Solarize": lambda image, level, *_: ImageOps.solarize(
    image, 256 - int(level * 256)
  ),
  "SolarizeAdd": _solarize_add,
  "Color": _enhancing(ImageEnhance.Color),
  "Contrast": _enhancing(ImageEnhance.Contrast),
  "Brightness": _enhancing(ImageEnhance.Brightness),
  "Sharpness": _enhancing(ImageEnhance.Sharpness),
  "ShearX": _shear_x,
  "ShearY": _shear_y,
  "TranslateX": _translate_x,
  "TranslateY": _translate_y,
}
_OPERATIONS = tuple(OPERATIONS.values())


_KINDS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
_ORDERS = tuple(itertools.permutations(range(len(_KINDS))))
COLOR_JITTER_DRAWS = len(_KINDS) + 1  # a factor each, and the order


def color_jitter(
  image: np.ndarray, draws: np.ndarray, *, strength: float
) -> np.ndarray:
  """Changes the colors of one image.

  Args:
    image: uint8 [H, W, 1 or 3].
    draws: [COLOR_JITTER_DRAWS] uniform in [0, 1).
    strength: factors are uniform in 1 - strength to 1 + strength; at most 1.

  Returns:
    uint8 of the same shape.
  """
  picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
  for which in _ORDERS[int(draws[-1] * len(_ORDERS))]:
    factor = 1 + strength * (2 * float(draws[which]) - 1)
    picture = _KINDS[which](picture).enhance(factor)
  return np.asarray(picture).reshape(image.shape)
