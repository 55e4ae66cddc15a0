"""Tests of the pixels and labels of mixup, cutmix and random erasing."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.train import mixup

SIZE = (13, 17)


def draw(seed: int, **changes) -> mixup.Mix:
  settings = {"mixup": 0.8, "cutmix": 1.0, "switch": 0.5} | changes
  return mixup.sample_mix(jax.random.key(seed), SIZE, **settings)


def many(count: int, **changes) -> mixup.Mix:
  """Returns results for many seeds at once, [count, ...]."""
  settings = {"mixup": 0.8, "cutmix": 1.0, "switch": 0.5} | changes
  one = functools.partial(mixup.sample_mix, image_size=SIZE, **settings)
  return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), count))


def images(batch: int) -> np.ndarray:
  random = np.random.default_rng(0)
  return random.normal(size=(batch, *SIZE, 3)).astype(np.float32)


def test_mixup_is_one_lambda_with_the_batch_reversed():
  mix = draw(3, cutmix=0.0)
  share = float(mix.label)
  assert 0 < share < 1
  x = images(4)
  mixed = mixup.mix_images(x, mix)
  for i in range(4):
    wanted = share * x[i] + (1 - share) * x[3 - i]
    np.testing.assert_allclose(mixed[i], wanted, rtol=1e-5, atol=1e-6)


def test_cutmix_pastes_a_box_of_the_partner():
  x = images(4)
  for seed in range(20):
    mix = draw(seed, mixup=0.0)
    mixed = np.asarray(mixup.mix_images(x, mix))
    own = np.isclose(mixed[0], x[0]).all(axis=-1)
    other = np.isclose(mixed[0], x[3]).all(axis=-1)
    assert (own ^ other).all()
    # The label is mixed by area, not by the sampled lambda.
    np.testing.assert_allclose(mix.label, own.mean(), rtol=1e-5)
    rows, columns = other.any(axis=1), other.any(axis=0)
    np.testing.assert_array_equal(other, np.outer(rows, columns))


def test_labels_equal_those_computed_by_hand():
  """Uses smoothing of 0.2 over 4 classes, then mixing 3 : 1."""
  mix = mixup.Mix(jnp.full(SIZE, 0.75), jnp.float32(0.75))
  targets = mixup.mix_labels(jnp.array([2, 0]), 4, 0.2, mix)
  np.testing.assert_allclose(
    targets, [[0.25, 0.05, 0.65, 0.05], [0.65, 0.05, 0.25, 0.05]], rtol=1e-6
  )


def test_mixing_equal_classes_gives_that_class():
  targets = mixup.mix_labels(jnp.array([1, 1]), 3, 0.0, draw(0))
  np.testing.assert_allclose(targets, [[0, 1, 0], [0, 1, 0]], atol=1e-6)


@pytest.mark.slow
def test_switching_and_probability():
  mix = many(4000)
  plain = np.asarray(mix.pixels).reshape(4000, -1)
  divided = ~np.isclose(plain.min(axis=1), plain.max(axis=1))
  # Beta(1, 1) is uniform: few boxes are smaller than a pixel.
  assert abs(divided.mean() - 0.5) < 0.08
  # The distribution is symmetric around 1/2.
  assert abs(np.asarray(many(4000, cutmix=0.0).label).mean() - 0.5) < 0.02
  off = many(4000, prob=0.25)
  assert abs((np.asarray(off.label) == 1).mean() - 0.75) < 0.04
  none = many(10, mixup=0.0, cutmix=0.0)
  np.testing.assert_array_equal(none.label, 1)
  np.testing.assert_array_equal(none.pixels, 1)


def test_lambda_of_mixup_has_a_beta_distribution():
  """The variance of Beta(0.8, 0.8) is 1 / (4 (2 * 0.8 + 1))."""
  share = np.asarray(many(20_000, cutmix=0.0).label)
  np.testing.assert_allclose(share.var(), 1 / 4 / 2.6, rtol=0.05)


@pytest.mark.parametrize("prob", [0.25, 1.0])
def test_erasing(prob: float):
  x = np.full((3000, 20, 30, 2), 50.0, np.float32)
  erase = jax.jit(mixup.random_erasing, static_argnums=2)
  out = np.asarray(erase(jax.random.key(0), x, prob))
  changed = (out != 50).all(axis=-1)
  np.testing.assert_array_equal(changed, (out != 50).any(axis=-1))
  hit = changed.any(axis=(1, 2))
  assert abs(hit.mean() - prob) < 0.03
  areas, ratios = [], []
  for each in changed[hit]:
    rows, columns = each.any(axis=1), each.any(axis=0)
    np.testing.assert_array_equal(each, np.outer(rows, columns))
    areas.append(each.mean())
    ratios.append(rows.sum() / columns.sum())
  # Rounding changes a side by up to half a pixel.
  assert 0.01 < min(areas) < 0.04
  assert 0.28 < max(areas) < 0.37
  assert min(ratios) < 0.5
  assert max(ratios) > 2
  noise = out[changed]
  assert abs(noise.mean()) < 0.02
  assert abs(noise.std() - 1) < 0.02
