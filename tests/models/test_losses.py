"""The loss equals NumPy loops and numbers computed by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mae_jax.models import losses
from tests.helpers import numpy_reference


def draw(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  random = np.random.default_rng(seed)
  pred, target = random.normal(size=(2, 3, 7, 12)).astype(np.float32)
  target *= random.uniform(0.1, 3, size=(3, 7, 1)).astype(np.float32)
  mask = (random.uniform(size=(3, 7)) < 0.6).astype(np.float32)
  return pred, target, mask


def test_norm_pix_by_hand():
  # Mean 3, squared deviations 4 + 1 + 0 + 1 + 4 = 10; ddof 1: 10 / 4 = 2.5.
  patch = jnp.array([[1.0, 2.0, 3.0, 4.0, 5.0]])
  mean, std = losses.patch_statistics(patch)
  np.testing.assert_allclose(mean, [[3.0]], rtol=1e-7)
  np.testing.assert_allclose(std, [[np.sqrt(2.5 + 1e-6)]], rtol=1e-7)
  wanted = np.array([[-2, -1, 0, 1, 2]]) / np.sqrt(2.5 + 1e-6)
  np.testing.assert_allclose(
    losses.normalize_patches(patch), wanted, rtol=1e-6, atol=1e-7
  )


def test_norm_pix_equals_a_loop():
  _, target, _ = draw(0)
  np.testing.assert_allclose(
    losses.normalize_patches(jnp.asarray(target)),
    numpy_reference.normalize(target),
    rtol=1e-5,
    atol=1e-6,
  )


def test_a_flat_patch_is_zero_and_finite():
  flat = losses.normalize_patches(jnp.full((2, 4), 0.7))
  # The mean may be off by a rounding, which the epsilon magnifies 1000 times.
  np.testing.assert_allclose(flat, np.zeros((2, 4)), atol=2e-4)


def test_the_loss_by_hand():
  pred = jnp.array([[[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]]])
  target = jnp.array([[[1.0, 3.0], [1.0, 4.0], [9.0, 9.0]]])
  # Patches: (1 + 9) / 2 = 5, (0 + 9) / 2 = 4.5, the last is visible.
  loss = losses.reconstruction(pred, target, jnp.array([[1.0, 1.0, 0.0]]))
  assert loss == pytest.approx(4.75, abs=1e-6)
  assert loss.shape == ()
  assert loss.dtype == jnp.float32


@pytest.mark.parametrize("seed", [1, 2])
def test_the_loss_equals_a_loop(seed: int):
  pred, target, mask = draw(seed)
  loss = losses.reconstruction(*map(jnp.asarray, (pred, target, mask)))
  wanted = numpy_reference.masked_mse(pred, target, mask)
  np.testing.assert_allclose(loss, wanted, rtol=1e-6)


def test_visible_patches_have_no_gradient():
  pred, target, mask = map(jnp.asarray, draw(3))
  gradient = jax.grad(losses.reconstruction)(pred, target, mask)
  hidden = np.asarray(mask)[:, :, None]
  assert (np.asarray(gradient) * (1 - hidden) == 0).all()
  # 2 (pred - target) / P over the number of hidden patches.
  wanted = 2 * (pred - target) / 12 * hidden / np.sum(np.asarray(mask))
  np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-8)


TORCH = {
  "mse": torch.nn.functional.mse_loss,
  "l1": torch.nn.functional.l1_loss,
  "smooth_l1": torch.nn.functional.smooth_l1_loss,
  "log_cosh": lambda pred, target, reduction: torch.log(
    torch.cosh(pred - target)
  ),
}


@pytest.mark.parametrize("scored", ["all", "masked"])
@pytest.mark.parametrize("error", TORCH)
def test_every_loss_and_its_gradient_equal_pytorchs(error: str, scored: str):
  pred, target, mask = draw(4)
  pred *= 2  # on both sides of 1, where the smooth loss bends
  value, gradient = jax.value_and_grad(losses.reconstruction)(
    *map(jnp.asarray, (pred, target, mask)), error, scored
  )
  theirs = torch.tensor(pred, dtype=torch.float64, requires_grad=True)
  costs = TORCH[error](
    theirs, torch.tensor(target, dtype=torch.float64), reduction="none"
  )
  counts = mask > 0 if scored == "masked" else np.ones_like(mask) > 0
  wanted = costs[torch.tensor(counts)].mean()
  wanted.backward()
  np.testing.assert_allclose(value, wanted.item(), rtol=1e-6)
  assert theirs.grad is not None
  np.testing.assert_allclose(gradient, theirs.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("error", losses.PIXEL_LOSSES)
def test_large_errors_are_finite(error: str):
  far = jnp.full((1, 1, 3), 1e4)
  value, gradient = jax.value_and_grad(losses.reconstruction)(
    far, -far, jnp.ones((1, 1)), error
  )
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()


def test_all_values_of_another_target_under_a_mask_of_pixels():
  """The setting objective.loss_on='all' is for masks of pixels."""
  random = np.random.default_rng(0)
  pred, target = random.normal(size=(2, 2, 6, 3)).astype(np.float32)
  mask = random.integers(0, 2, (2, 6, 12)).astype(np.float32)
  found = losses.reconstruction(pred, target, mask, "l1", "all")
  np.testing.assert_allclose(found, np.abs(pred - target).mean(), rtol=1e-6)


def test_info_nce_and_its_gradient_equal_pytorch():
  random = np.random.default_rng(4)
  pred, target = random.normal(size=(2, 2, 9, 6)).astype(np.float32)
  value, grad = jax.jit(jax.value_and_grad(losses.info_nce), static_argnums=2)(
    pred, target, 0.1
  )
  theirs = torch.tensor(pred, dtype=torch.float64, requires_grad=True)
  own = torch.nn.functional.normalize(torch.tensor(target).double(), dim=-1)
  every = torch.nn.functional.normalize(theirs, dim=-1) @ own.transpose(1, 2)
  wanted = torch.nn.functional.cross_entropy(
    (every / 0.1).flatten(0, 1), torch.arange(9).repeat(2)
  )
  wanted.backward()
  np.testing.assert_allclose(value, wanted.item(), rtol=1e-5)
  np.testing.assert_allclose(grad, theirs.grad, rtol=1e-4, atol=1e-6)
