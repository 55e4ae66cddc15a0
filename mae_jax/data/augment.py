"""RandAugment (timm's m9-mstd0.5-inc1, as the reference uses) and color jitter.

RandAugment samples two of fifteen operations with replacement. Each is applied
with probability 0.5, at a severity that grows with the magnitude (Cubuk et al.
2020, arXiv 1909.13719). Pillow implements the operations.
"""

import itertools
import statistics
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

LAYERS = 2  # operations per image
PROB = 0.5
MAX_MAGNITUDE = 10.0
RAND_AUGMENT_DRAWS = 4 * LAYERS  # operation, apply or not, severity, direction

# Settings of the operations at the largest magnitude.
_ROTATE = 30.0  # degrees
_ENHANCE = 0.9
_SHEAR = 0.3
_TRANSLATE = 0.45  # fraction of the side
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
  """Applies RandAugment to one image.

  Args:
    image: uint8 [H, W, 1 or 3].
    draws: [RAND_AUGMENT_DRAWS] uniform in [0, 1).
    magnitude: mean severity, from 0 to 10.
    std: standard deviation of the severity, which is clipped to 0..10.
    fill: color for pixels from outside the image, one value per channel.

  Returns:
    uint8 of the same shape.
  """
  gray = image.shape[-1] == 1
  picture = Image.fromarray(image[..., 0] if gray else image)
  fill_color = fill[0] if gray else fill
  for choice, apply, severity, direction in draws.reshape(LAYERS, 4):
    if apply >= PROB:
      continue
    level = magnitude
    if std:
      level += std * _NORMAL.inv_cdf(min(max(severity, 1e-9), 1 - 1e-9))
    level = min(max(level, 0.0), MAX_MAGNITUDE) / MAX_MAGNITUDE
    operation = _OPERATIONS[int(choice * len(_OPERATIONS))]
    sign = 1 if direction < 0.5 else -1
    picture = operation(picture, level, sign, fill_color)
  return np.asarray(picture).reshape(image.shape)


def _affine(place: int, most: float, side: int | None = None) -> _Operation:
  """Makes an operation that sets one entry of PIL's affine matrix.

  The entry is at most `most`, in units of the image's width (`side` 0) or
  height (1) for translations.
  """

  def operation(image, level, sign, fill):
    matrix = [1, 0, 0, 0, 1, 0]
    unit = 1 if side is None else image.size[side]
    matrix[place] = sign * level * most * unit
    return image.transform(
      image.size,
      Image.Transform.AFFINE,
      matrix,
      resample=Image.Resampling.BICUBIC,
      fillcolor=fill,
    )

  return operation


def _rotate(image, level, sign, fill):
  return image.rotate(
    sign * level * _ROTATE,
    resample=Image.Resampling.BICUBIC,
    fillcolor=fill,
  )


def _posterize(image, level, *_):
  # Keeping 0 bits gives a black image; Pillow's own posterize refuses that.
  mask = 256 - (1 << (4 + int(level * 4)))
  return image.point([i & mask for i in range(256)] * len(image.getbands()))


def _solarize_add(image, level, *_):
  add = min(128, int(level * _SOLARIZE_ADD))
  table = [min(255, i + add) if i < 128 else i for i in range(256)]
  return image.point(table * len(image.getbands()))


def _enhance(kind: type) -> _Operation:
  def operation(image, level, sign, fill):
    return kind(image).enhance(1 + sign * level * _ENHANCE)

  return operation


# In timm's order. Where timm has two variants, this is the "increasing" one.
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
  "Color": _enhance(ImageEnhance.Color),
  "Contrast": _enhance(ImageEnhance.Contrast),
  "Brightness": _enhance(ImageEnhance.Brightness),
  "Sharpness": _enhance(ImageEnhance.Sharpness),
  "ShearX": _affine(1, _SHEAR),
  "ShearY": _affine(3, _SHEAR),
  "TranslateX": _affine(2, _TRANSLATE, side=0),
  "TranslateY": _affine(5, _TRANSLATE, side=1),
}
_OPERATIONS = tuple(OPERATIONS.values())


_JITTERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
_ORDERS = tuple(itertools.permutations(range(len(_JITTERS))))
COLOR_JITTER_DRAWS = len(_JITTERS) + 1  # one factor each, and the order


def color_jitter(
  image: np.ndarray, draws: np.ndarray, *, strength: float
) -> np.ndarray:
  """Changes brightness, contrast and saturation of one image, in random order.

  Args:
    image: uint8 [H, W, 1 or 3].
    draws: [COLOR_JITTER_DRAWS] uniform in [0, 1).
    strength: at most 1; factors are uniform in 1 - strength to 1 + strength.

  Returns:
    uint8 of the same shape.
  """
  picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
  for index in _ORDERS[int(draws[-1] * len(_ORDERS))]:
    factor = 1 + strength * (2 * float(draws[index]) - 1)
    picture = _JITTERS[index](picture).enhance(factor)
  return np.asarray(picture).reshape(image.shape)
