"""Tests of RandAugment against NumPy and Pillow, and of its random draws."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from mae_jax.data import augment

FILL = (124, 116, 104)


def picture(channels: int = 3) -> np.ndarray:
  random = np.random.default_rng(0)
  low = random.integers(40, 200, (9, 11, channels))
  image = Image.fromarray(np.uint8(low.squeeze()))
  image = image.resize((33, 27), Image.Resampling.BICUBIC)
  return np.asarray(image).reshape(27, 33, channels)


def apply(name: str, level: float, sign: int = 1, channels: int = 3):
  """Applies one operation at a severity in 0..1, through `rand_augment`."""
  names = list(augment.OPERATIONS)
  which = (names.index(name) + 0.5) / len(names)
  direction = 0.2 if sign > 0 else 0.7
  draws = np.array([which, 0.0, 0.5, direction, 0.0, 0.9, 0.5, 0.0])
  return augment.rand_augment(
    picture(channels), draws, magnitude=10 * level, std=0.0, fill=FILL
  )


def gray(x: np.ndarray) -> np.ndarray:
  """Computes ITU-R 601 luma in Pillow's fixed point."""
  weights = np.array([19595, 38470, 7471])
  return ((x.astype(int) @ weights + (1 << 15)) >> 16)[..., None]


def blend(start: np.ndarray, x: np.ndarray, factor: float) -> np.ndarray:
  return np.clip(start + factor * (x.astype(float) - start), 0, 255)


def pillow(name: str, image: Image.Image, level: float, sign: int):
  """Applies the operation with Pillow alone, as timm's m9-mstd0.5-inc1."""

  def affine(*matrix):
    return image.transform(
      image.size,
      Image.Transform.AFFINE,
      matrix,
      resample=Image.Resampling.BICUBIC,
      fillcolor=FILL,
    )

  width, height = image.size
  add = int(110 * level)
  return {
    "AutoContrast": lambda: ImageOps.autocontrast(image),
    "Equalize": lambda: ImageOps.equalize(image),
    "Invert": lambda: ImageOps.invert(image),
    "Rotate": lambda: image.rotate(
      30 * sign * level, Image.Resampling.BICUBIC, fillcolor=FILL
    ),
    "Posterize": lambda: ImageOps.posterize(image, 4 - int(4 * level)),
    "Solarize": lambda: ImageOps.solarize(image, 256 - int(256 * level)),
    "SolarizeAdd": lambda: image.point(
      [min(255, i + add) if i < 128 else i for i in range(256)] * 3
    ),
    "Color": lambda: ImageEnhance.Color(image).enhance(1 + 0.9 * sign * level),
    "Contrast": lambda: ImageEnhance.Contrast(image).enhance(
      1 + 0.9 * sign * level
    ),
    "Brightness": lambda: ImageEnhance.Brightness(image).enhance(
      1 + 0.9 * sign * level
    ),
    "Sharpness": lambda: ImageEnhance.Sharpness(image).enhance(
      1 + 0.9 * sign * level
    ),
    "ShearX": lambda: affine(1, 0.3 * sign * level, 0, 0, 1, 0),
    "ShearY": lambda: affine(1, 0, 0, 0.3 * sign * level, 1, 0),
    "TranslateX": lambda: affine(1, 0, 0.45 * sign * level * width, 0, 1, 0),
    "TranslateY": lambda: affine(1, 0, 0, 0, 1, 0.45 * sign * level * height),
  }[name]()


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_each_operation_is_pillows(name: str):
  image = Image.fromarray(picture())
  differences = [
    np.abs(
      apply(name, level, sign).astype(int)
      - np.asarray(pillow(name, image, level, sign))
    ).max()
    for level in (0.25, 0.5, 0.9)
    for sign in (1, -1)
  ]
  print(f"{name}: largest difference from Pillow {max(differences)} of 255")
  assert max(differences) == 0


LEVELS = (0.0, 0.37, 0.9, 1.0)


@pytest.mark.parametrize("level", LEVELS)
def test_operations_on_values(level: float):
  x = picture()
  np.testing.assert_array_equal(apply("Invert", level), 255 - x)
  bits = 4 - int(4 * level)
  kept = x & np.uint8(256 - (1 << (8 - bits))) if bits else x * 0
  np.testing.assert_array_equal(apply("Posterize", level), kept)
  threshold = 256 - int(256 * level)
  np.testing.assert_array_equal(
    apply("Solarize", level), np.where(x < threshold, x, 255 - x)
  )
  added = np.minimum(x.astype(int) + min(128, int(110 * level)), 255)
  np.testing.assert_array_equal(
    apply("SolarizeAdd", level), np.where(x < 128, added, x)
  )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("sign", [1, -1])
def test_operations_that_blend(level: float, sign: int):
  x, factor = picture(), 1 + sign * 0.9 * level
  starts = {
    "Brightness": np.zeros_like(x, float),
    "Color": np.broadcast_to(gray(x), x.shape).astype(float),
    "Contrast": np.full(x.shape, int(gray(x).mean() + 0.5), float),
  }
  for name, start in starts.items():
    wanted = blend(start, x, factor)
    np.testing.assert_allclose(apply(name, level, sign), wanted, atol=1.001)


def test_operations_that_spread_the_histogram():
  x = picture()
  found = apply("AutoContrast", 0.5)
  low, high = x.min(axis=(0, 1)), x.max(axis=(0, 1))
  wanted = (x - low) * (255.0 / (high - low))
  np.testing.assert_allclose(found, wanted, atol=1.001)
  flat = apply("Equalize", 0.5)
  for c in range(3):
    counts, _ = np.histogram(flat[..., c], bins=4, range=(0, 256))
    assert counts.min() > 0.15 * flat[..., c].size


@pytest.mark.parametrize("sign", [1, -1])
def test_sharpness(sign: int):
  """Blends with a 3 x 3 mean of weights 1 and 5; the border stays."""
  x, factor = picture(), 1 + sign * 0.9 * 0.5
  smooth = x.astype(float).copy()
  total = sum(
    (5 if (dy, dx) == (0, 0) else 1)
    * x[1 + dy : 26 + dy, 1 + dx : 32 + dx].astype(float)
    for dy in (-1, 0, 1)
    for dx in (-1, 0, 1)
  )
  smooth[1:-1, 1:-1] = total / 13
  wanted = blend(np.rint(smooth), x, factor)
  np.testing.assert_allclose(apply("Sharpness", 0.5, sign), wanted, atol=1.6)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("level", [0.25, 0.9])
def test_geometry(level: float, sign: int):
  """Transforms a ramp of coordinates; outside pixels have the fill color."""
  y, x = np.mgrid[:27, :33].astype(float)
  s = sign * level
  center_x, center_y, angle = 16.5, 13.5, np.deg2rad(30 * s)
  u, v = x + 0.5 - center_x, y + 0.5 - center_y
  sources = {
    "ShearX": (x + 0.3 * s * (y + 0.5), y),
    "ShearY": (x, y + 0.3 * s * (x + 0.5)),
    "TranslateX": (x + 0.45 * s * 33, y),
    "TranslateY": (x, y + 0.45 * s * 27),
    "Rotate": (
      np.cos(angle) * u - np.sin(angle) * v + center_x - 0.5,
      np.sin(angle) * u + np.cos(angle) * v + center_y - 0.5,
    ),
  }
  ramp = np.stack([5 * x, 7 * y, 3 * (x + y)], axis=-1).astype(np.uint8)
  names = list(augment.OPERATIONS)
  for name, (from_x, from_y) in sources.items():
    draws = np.zeros(8)
    draws[0] = (names.index(name) + 0.5) / len(names)
    draws[3], draws[5] = (0.2 if sign > 0 else 0.7), 0.9
    out = augment.rand_augment(
      ramp, draws, magnitude=10 * level, std=0.0, fill=FILL
    )
    inside = (from_x > 2) & (from_x < 30) & (from_y > 2) & (from_y < 24)
    wanted = np.stack([5 * from_x, 7 * from_y, 3 * (from_x + from_y)], -1)
    assert inside.sum() > 50
    np.testing.assert_allclose(out[inside], wanted[inside], atol=2)
    outside = (from_x < -1.5) | (from_x > 34) | (from_y < -1.5) | (from_y > 28)
    assert outside.any() or level < 0.5
    assert (out[outside] == np.array(FILL)).all()


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_gray_images(name: str):
  """Gray images equal color images of three equal channels."""
  one = picture(1)
  names = list(augment.OPERATIONS)
  draws = np.array([(names.index(name) + 0.5) / 15, 0, 0.5, 0.2] + [0.9] * 4)
  gray_, color = (
    augment.rand_augment(x, draws, magnitude=5, std=0, fill=(90, 90, 90))
    for x in (one, np.repeat(one, 3, axis=-1))
  )
  np.testing.assert_allclose(
    np.repeat(gray_, 3, axis=-1).astype(int), color, atol=1
  )


def test_frequency_and_severity_of_operations(monkeypatch):
  calls = collections.Counter()
  levels = []

  def counting(name):
    def operation(image, level, sign, fill):
      calls[name] += 1
      levels.append(level)
      return image

    return operation

  monkeypatch.setattr(
    augment,
    "_OPERATIONS",
    tuple(counting(name) for name in augment.OPERATIONS),
  )
  image, random = picture(), np.random.default_rng(1)
  for draws in random.uniform(size=(6000, augment.RAND_AUGMENT_DRAWS)):
    augment.rand_augment(image, draws, magnitude=9, std=0.5, fill=FILL)
  # Two of fifteen, each with probability 0.5: 6000 in all, 400 of each.
  assert abs(calls.total() - 6000) < 250
  assert len(calls) == 15
  assert min(calls.values()) > 320
  levels = 10 * np.array(levels)
  assert abs(np.median(levels) - 9) < 0.03
  assert levels.max() <= 10
  # N(9, 0.5) is above 10 with probability 1/40.
  assert abs((levels == 10).mean() - 0.0228) < 0.008
  assert abs(np.quantile(levels, 0.1587) - 8.5) < 0.04
