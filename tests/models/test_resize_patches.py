"""Kernels for other patch sizes keep the outputs that they should keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mae_jax.models import resize_patches

WIDTH = 5


def draw(*shape: int) -> np.ndarray:
  return np.random.default_rng(8).normal(size=shape).astype(np.float32)


def resize(patches: np.ndarray, height: int, width: int) -> np.ndarray:
  """Resizes [N, h, w, C] with PyTorch."""
  x = torch.tensor(patches).permute(0, 3, 1, 2)
  x = torch.nn.functional.interpolate(
    x, (height, width), mode="bilinear", antialias=True
  )
  return x.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("new", [(8, 8), (4, 6), (7, 4)])
def test_an_enlarged_patch_is_embedded_as_the_patch_was(new):
  old = resize_patches.Patch(4, 4, 3)
  kernel, patches = draw(48, WIDTH), draw(6, 4, 4, 3)
  found = resize_patches.embedding(kernel, old, resize_patches.Patch(*new, 3))
  large = resize(patches, *new)
  np.testing.assert_allclose(
    large.reshape(6, -1) @ found, patches.reshape(6, -1) @ kernel, atol=1e-4
  )


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3), (4, 3)])
def test_a_gray_patch_is_embedded_as_it_was(before: int, after: int):
  kernel, gray = draw(16 * before, WIDTH), draw(6, 4, 4, 1)
  found = resize_patches.embedding(
    kernel,
    resize_patches.Patch(4, 4, before),
    resize_patches.Patch(4, 4, after),
  )
  was, is_ = (gray.repeat(n, 3).reshape(6, -1) for n in (before, after))
  np.testing.assert_allclose(is_ @ found, was @ kernel, atol=1e-4)


@pytest.mark.parametrize("new", [(8, 8), (2, 4), (4, 4)])
def test_predictions_are_resized_as_images(new):
  old = resize_patches.Patch(4, 4, 3)
  kernel, bias, tokens = draw(WIDTH, 48), draw(48), draw(6, WIDTH)
  after = resize_patches.Patch(*new, 3)
  found = tokens @ resize_patches.prediction(kernel, old, after)
  found += resize_patches.prediction(bias, old, after)
  pred = (tokens @ kernel + bias).reshape(6, 4, 4, 3)
  np.testing.assert_allclose(
    found.reshape(6, *new, 3), resize(pred, *new), atol=1e-4
  )


def test_a_gray_prediction_is_the_mean_of_the_colors():
  kernel, tokens = draw(WIDTH, 48), draw(6, WIDTH)
  found = resize_patches.prediction(
    kernel, resize_patches.Patch(4, 4, 3), resize_patches.Patch(4, 4, 1)
  )
  pred = (tokens @ kernel).reshape(6, 16, 3)
  np.testing.assert_allclose(tokens @ found, pred.mean(axis=-1), atol=1e-5)


def test_the_same_patch_changes_nothing():
  same, kernel = resize_patches.Patch(4, 2, 3), draw(24, WIDTH)
  np.testing.assert_allclose(
    resize_patches.embedding(kernel, same, same), kernel, atol=1e-6
  )
  np.testing.assert_allclose(
    resize_patches.prediction(kernel.T, same, same), kernel.T, atol=1e-6
  )
