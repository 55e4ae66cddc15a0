"""Patches equal a loop over pixels, for any shape, and join to the image."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from mae_jax.models import patchify
from tests.helpers import numpy_reference

SHAPES = [  # H, W, C, patch height, patch width
  (8, 8, 1, 2, 2),
  (8, 12, 3, 4, 4),
  (12, 8, 2, 3, 4),
  (6, 10, 4, 6, 2),
  (4, 6, 5, 2, 3),
]


def draw(height: int, width: int, channels: int) -> np.ndarray:
  random = np.random.default_rng(height + width + channels)
  shape = (2, height, width, channels)
  return random.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("h", "w", "c", "p", "q"), SHAPES)
def test_patchify_equals_a_loop(h: int, w: int, c: int, p: int, q: int):
  images = draw(h, w, c)
  cut = patchify.patchify(images, (p, q))
  np.testing.assert_array_equal(cut, numpy_reference.patchify(images, (p, q)))
  assert patchify.grid_size((h, w), (p, q)) == (h // p, w // q)


@pytest.mark.parametrize(("h", "w", "c", "p", "q"), SHAPES)
def test_unpatchify_is_the_inverse(h: int, w: int, c: int, p: int, q: int):
  images = draw(h, w, c)
  rows = numpy_reference.patchify(images, (p, q))
  whole = patchify.unpatchify(jax.numpy.asarray(rows), (p, q), (h, w))
  np.testing.assert_array_equal(whole, images)


@pytest.mark.parametrize(
  ("size", "patch", "text"),
  [
    (
      (225, 224),
      (16, 16),
      "image_size=225 is not a multiple of patch_size=16; the nearest are 224 "
      "and 240",
    ),
    ((8, 10), (2, 4), "image_size=10 .* the nearest are 8 and 12"),
    ((8, 3), (2, 4), "image_size=3 .* the nearest are 4$"),
  ],
)
def test_a_size_that_is_not_whole_patches(size, patch, text: str):
  with pytest.raises(ValueError, match=text):
    patchify.grid_size(size, patch)
  with pytest.raises(ValueError, match=text):
    patchify.patchify(np.zeros((1, *size, 1)), patch)
