"""Tests that batched resampling equals Pillow's, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mae_jax.data import prepare, resample


def pillow(image, box, size, how="bicubic"):
  """Applies Pillow's passes with columns first; Pillow 13 may do rows first."""
  top, left, height, width = box
  if image.shape[-1] == 1:
    image = image[..., 0]
  crop = Image.fromarray(image).crop((left, top, left + width, top + height))
  for shape in ((size[1], height), (size[1], size[0])):
    crop = crop.resize(shape, prepare.RESAMPLE[how])
  result = np.asarray(crop)
  return result.reshape(*size, -1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (5, 13), (31, 24), (1, 1)])
@pytest.mark.parametrize("how", prepare.RESAMPLE)
def test_equals_pillow_bit_for_bit(channels, size, how):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (40, 17, 23, channels), np.uint8)
  height, width = rng.integers(1, 18, 40), rng.integers(1, 24, 40)
  top, left = rng.integers(0, 18 - height), rng.integers(0, 24 - width)
  boxes = np.stack([top, left, height, width], 1)

  found = resample.resize_boxes(images, boxes, size, how=how).numpy()

  expected = [
    pillow(image, box, size, how)
    for image, box in zip(images, boxes, strict=True)
  ]
  np.testing.assert_array_equal(found, expected)


def test_equals_pillow_on_a_photo(photos):
  image = photos[1]
  box = (31, 120, 300, 401)
  found = resample.resize_boxes(image[None], np.array([box]), (64, 64))
  np.testing.assert_array_equal(found[0], pillow(image, box, (64, 64)))


def test_an_image_does_not_depend_on_its_batch():
  rng = np.random.default_rng(1)
  images = rng.integers(0, 256, (64, 8, 8, 1), np.uint8)
  boxes = np.tile([1, 0, 6, 7], (64, 1))
  whole = resample.resize_boxes(images, boxes, (8, 8)).numpy()
  alone = resample.resize_boxes(images[9:10], boxes[9:10], (8, 8)).numpy()
  np.testing.assert_array_equal(whole[9:10], alone)


def test_a_window_is_cut_from_the_resized_image():
  rng = np.random.default_rng(2)
  images = rng.integers(0, 256, (3, 9, 11, 2), np.uint8)
  boxes = np.tile([0, 0, 9, 11], (3, 1))
  whole = resample.resize_boxes(images, boxes, (20, 14)).numpy()
  window = resample.resize_boxes(images, boxes, (20, 14), (3, 2, 10, 9))
  np.testing.assert_array_equal(window, whole[:, 3:13, 2:11])
