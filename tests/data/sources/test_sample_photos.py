"""Tests of the sample photographs: two splits, and the right pixels."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
from PIL import Image

from mae_jax.data import sources
from mae_jax.data.sources import sample_photos
from mae_jax.utils.errors import ConfigError
from tests.data.sources.test_digits import all_images


@pytest.fixture
def color(settings):
  three = {"channels": 3, "mean": (0.5,) * 3, "std": (0.25,) * 3}
  return settings(source="photos", **three)


def test_tiles_are_parts_of_the_photographs(color):
  train = sources.open_source(color, "train")
  images = all_images(train)["image"]
  assert images.shape == (135, 160, 160, 3)
  assert images.dtype == np.uint8
  assert train.class_names is None
  whole = Image.fromarray(skimage.data.astronaut()).resize((256, 256), 3)
  for number, image in enumerate(images[:9]):  # three rows of three
    top, left = 48 * (number // 3), 48 * (number % 3)
    np.testing.assert_array_equal(
      image, np.asarray(whole)[top : top + 160, left : left + 160]
    )
  # Tiles of gray photographs are gray.
  assert (np.ptp(images, axis=-1).max(axis=(1, 2)) == 0).sum() == 9 * 4 + 12


def test_held_out_tiles_are_of_other_photographs(color):
  train, held_out = (
    all_images(sources.open_source(color, split))["image"]
    for split in ("train", "eval")
  )
  assert len(held_out) == 30
  # A tile of the same photograph would share a row of pixels.
  rows = {row.tobytes() for image in train for row in image}
  assert not any(row.tobytes() in rows for image in held_out for row in image)


def test_photographs_can_be_read_as_gray(settings):
  train = sources.open_source(settings(source="photos"), "train")
  assert all_images(train)["image"].shape == (135, 160, 160, 1)
  assert train.channels == 1


def test_two_channels_are_refused(settings):
  two = settings(source="photos", channels=2, mean=(0.5,) * 2, std=(0.2,) * 2)
  with pytest.raises(ConfigError, match=r"channels=2.*1 .gray. or 3"):
    sources.open_source(two, "train")


def test_a_missing_photograph_is_an_error(color, monkeypatch):
  monkeypatch.setattr(sample_photos, "TRAIN", ("nothing.png",))
  with pytest.raises(ConfigError, match=r"needs nothing\.png.*install"):
    sources.open_source(color, "train")
