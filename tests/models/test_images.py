"""Normalization equals NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.models import patchify

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalize_equals_numpy(channels: int):
  random = np.random.default_rng(0)
  pixels = random.integers(0, 256, (2, 5, 4, channels), np.uint8)
  mean, std = MEAN[:channels], STD[:channels]
  out = jax.jit(lambda x: patchify.normalize(x, mean, std))(pixels)
  assert out.dtype == jnp.float32
  wanted = np.empty(pixels.shape)
  for c in range(channels):
    wanted[..., c] = (pixels[..., c] / 255 - mean[c]) / std[c]
  np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-6)
