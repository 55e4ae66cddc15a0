"""Tests of the digits source: a fixed split, and the right labels."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import datasets

from mae_jax.data import sources
from mae_jax.utils.errors import ConfigError


def all_images(source):
  return {
    key: value.numpy()
    for key, value in source.load(np.arange(source.num_examples)).items()
  }


def test_the_split_is_fixed(settings):
  train = sources.open_source(settings(), "train")
  held_out = sources.open_source(settings(), "eval")
  assert (train.num_examples, held_out.num_examples) == (1437, 360)
  assert train.class_names == held_out.class_names == tuple("0123456789")
  both = [all_images(train), all_images(held_out)]
  pixels = np.concatenate([part["image"] for part in both])
  assert pixels.dtype == np.uint8
  assert (pixels.min(), pixels.max()) == (0, 255)
  # Together the splits contain each original image exactly as often.
  levels = np.rint(pixels * (16 / 255)).astype(int).reshape(1797, 64)
  original = datasets.load_digits().data.astype(int)
  np.testing.assert_array_equal(
    np.unique(levels, axis=0, return_counts=True)[1],
    np.unique(original, axis=0, return_counts=True)[1],
  )
  for part in both:
    share = np.bincount(part["label"]) / len(part["label"])
    np.testing.assert_allclose(share, 0.1, atol=0.01)


def test_labels_belong_to_their_images(settings):
  train = all_images(sources.open_source(settings(), "train"))
  digits = datasets.load_digits()
  label = {
    tuple(image): label
    for image, label in zip(digits.data.astype(int), digits.target, strict=True)
  }
  levels = np.rint(train["image"] * (16 / 255)).astype(int).reshape(-1, 64)
  assert [label[tuple(image)] for image in levels] == list(train["label"])


def test_color_is_refused(settings):
  with pytest.raises(ConfigError, match=r"channels=3.*channels=1"):
    sources.open_source(settings(channels=3), "train")


def test_an_empty_eval_split_has_no_source(settings):
  assert sources.open_source(settings(eval_split=""), "eval") is None


def test_an_unknown_source_suggests_the_nearest(settings):
  with pytest.raises(ConfigError, match=r"'folders'.*mean 'folder'"):
    sources.open_source(settings(source="folders"), "train")
