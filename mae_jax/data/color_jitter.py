"""Colour jitter, as torchvision's ColorJitter without hue.

Brightness, contrast and saturation, in random order, each by a factor of its
own. It is in table 1 of He et al. 2021, where it does not help.
"""

from __future__ import annotations

import itertools

import numpy as np
from PIL import Image, ImageEnhance

_KINDS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
_ORDERS = tuple(itertools.permutations(range(len(_KINDS))))
DRAWS = len(_KINDS) + 1  # a factor each, and the order


def color_jitter(
  image: np.ndarray, draws: np.ndarray, *, strength: float
) -> np.ndarray:
  """Changes the colours of one image.

  Args:
    image: uint8 [H, W, 1 or 3].
    draws: [DRAWS] uniform in [0, 1).
    strength: factors are uniform in 1 - strength to 1 + strength; at most 1.

  Returns:
    uint8 of the same shape.
  """
  picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
  for which in _ORDERS[int(draws[-1] * len(_ORDERS))]:
    factor = 1 + strength * (2 * float(draws[which]) - 1)
    picture = _KINDS[which](picture).enhance(factor)
  return np.asarray(picture).reshape(image.shape)
