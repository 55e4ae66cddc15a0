"""Tests of color jitter against the formulas of its three operations."""

from __future__ import annotations

import collections
import functools

import numpy as np
import pytest
import tensorflow as tf

from mae_jax.data import augment, pipeline, preprocess, sources
from mae_jax.utils.errors import ConfigError
from tests.data.test_augment import blend, gray, picture
from tests.helpers import tiny

BRIGHTNESS, CONTRAST, COLOR = 0, 1, 2
ORDERS = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]


def jittered(x: np.ndarray, factors, order: int, strength: float = 0.4):
  """Applies color jitter with given factors instead of draws."""
  draws = [(factor - 1 + strength) / (2 * strength) for factor in factors]
  draws = np.float32([*draws, (order + 0.5) / 6])
  return augment.color_jitter(x, draws, strength=strength)


def by_hand(x: np.ndarray, factors, order: int) -> np.ndarray:
  """Applies the formulas, and rounds after each as Pillow does."""
  for which in ORDERS[order]:
    luma = gray(x) if x.shape[-1] == 3 else x
    start = {
      BRIGHTNESS: np.zeros(x.shape),
      CONTRAST: np.full(x.shape, int(luma.mean() + 0.5), float),
      COLOR: np.broadcast_to(luma, x.shape).astype(float),
    }[which]
    x = blend(start, x, factors[which]).astype(np.uint8)
  return x


@pytest.mark.parametrize("order", range(6))
@pytest.mark.parametrize("channels", [1, 3])
def test_the_factors_in_their_order(order: int, channels: int):
  x = picture(channels)
  for factors in ((0.6, 1.4, 0.7), (1.3, 0.65, 1.35), (1.0, 1.0, 1.0)):
    found = jittered(x, factors, order)
    wanted = by_hand(x, factors, order)
    # Pillow truncates, the formulas round, at most once per operation.
    np.testing.assert_allclose(found, wanted.astype(float), atol=3)
    assert (factors == (1.0, 1.0, 1.0)) == np.array_equal(found, x)


def test_orders_and_factors_are_uniform(monkeypatch):
  calls: list[tuple[int, float]] = []

  def recording(which):
    class Kind:
      def __init__(self, image):
        self.image = image

      def enhance(self, factor):
        calls.append((which, factor))
        return self.image

    return Kind

  kinds = tuple(recording(which) for which in range(3))
  monkeypatch.setattr(augment, "_JITTERS", kinds)
  draws = np.random.default_rng(0).random((3000, augment.COLOR_JITTER_DRAWS))
  for row in draws:
    augment.color_jitter(picture(), row, strength=0.3)
  orders = collections.Counter(
    tuple(which for which, _ in calls[i : i + 3])
    for i in range(0, len(calls), 3)
  )
  assert sorted(orders) == ORDERS
  assert (
    min(orders.values()) > 400
  )  # 500 are expected; six standard deviations are 120
  for which in range(3):
    factors = [factor for kind, factor in calls if kind == which]
    assert 0.7 <= min(factors) < 0.705
    assert 1.295 < max(factors) <= 1.3
    assert np.mean(factors) == pytest.approx(1, abs=0.02)


def test_a_batch_equals_its_images_one_by_one():
  images = np.stack([picture(), picture()[::-1], picture()[:, ::-1]])
  draws = np.random.default_rng(1).random(
    (3, augment.COLOR_JITTER_DRAWS), np.float32
  )
  jitter = functools.partial(augment.color_jitter, strength=0.5)
  found = preprocess.map_pillow(jitter, tf.constant(images), tf.constant(draws))
  for image, row, one in zip(images, draws, found.numpy(), strict=True):
    alone = preprocess.map_pillow(jitter, tf.constant(image), tf.constant(row))
    np.testing.assert_array_equal(one, alone)
    assert (one != image).any()


def first_batch(**data) -> np.ndarray:
  settings = tiny.config(data=data).data
  source = sources.open_source(settings, "train")
  assert source is not None
  rows = np.arange(settings.batch_size)
  batches = pipeline.train_batches(
    source, settings, seed=0, rows=rows, start_step=3
  )
  return np.asarray(next(batches)["image"])


def test_training_images_are_jittered():
  """Crops stay the same, because color jitter has its own random stream."""
  plain, changed = first_batch(), first_batch(color_jitter=0.4)
  assert (plain != changed).any(axis=(1, 2, 3)).mean() > 0.9
  np.testing.assert_array_equal(changed, first_batch(color_jitter=0.4))
  for before, after in zip(plain, changed, strict=True):
    a, b = np.float64(before.ravel()), np.float64(after.ravel())
    assert np.corrcoef(a, b)[0, 1] > 0.95


def test_crops_of_one_size_are_not_clipped():
  with pytest.raises(ConfigError, match="crops are never clipped"):
    tiny.config(data={"crop_fixed": 0.9, "crop_clipped": True})


def test_other_channels_are_refused():
  data = {"source": "folder", "channels": 4, "mean": (0.5,) * 4}
  config = tiny.config(data=data | {"std": (0.5,) * 4, "color_jitter": 0.4})
  with pytest.raises(ConfigError, match="works with 1 or 3 channels"):
    pipeline._check(None, config.data, np.arange(4), 4)
