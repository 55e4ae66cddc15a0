"""Activations equal SciPy's in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from mae_jax.models import transformer


@pytest.fixture
def x():
  rng = np.random.default_rng(0)
  draws = rng.normal(0, 4, 10_000)
  edges = [0, -0.0, 1e-30, -1e-30, 6, -6, 14, -14, 1e4, -1e4, 3e38, -3e38]
  return np.concatenate([draws, edges]).astype(np.float32)


@pytest.mark.parametrize("portable", [False, True])
def test_gelu_is_the_exact_one(x, portable):
  name = transformer.PORTABLE_ACTIVATIONS["gelu"] if portable else "gelu"
  gelu = transformer.ACTIVATION_FUNCTIONS[name]
  values, slopes = jax.jit(jax.vmap(jax.value_and_grad(gelu)))(x)
  wide = x.astype(np.float64)
  normal = special.ndtr(wide)
  exact = wide * normal
  # PyTorch's float32 differs by 3.1e-7.
  assert np.all(np.abs(values - exact) <= 2.5e-7 * np.maximum(np.abs(x), 1))
  density = np.exp(-(wide**2) / 2) / np.sqrt(2 * np.pi)
  if not portable:  # exported programs have no gradient
    np.testing.assert_allclose(slopes, normal + wide * density, atol=4e-7)


def test_gelu_is_rounded_once_in_bfloat16(x):
  half = jnp.asarray(x, jnp.bfloat16)
  got = transformer.gelu(half)
  assert got.dtype == jnp.bfloat16
  wide = np.asarray(half, np.float64)
  exact = wide * special.ndtr(wide)
  error = np.abs(np.asarray(got, np.float64) - exact)
  assert np.all(error <= 2**-8 * np.abs(exact) + 2.5e-7 * np.abs(wide))


def test_portable_activations_need_no_erf():
  def primitives(name):
    made = jax.make_jaxpr(transformer.ACTIVATION_FUNCTIONS[name])(jnp.ones(3))
    return str(made)

  assert " erf " in primitives("gelu")
  for name in transformer.ACTIVATIONS:
    assert " erf " not in primitives(
      transformer.PORTABLE_ACTIVATIONS.get(name, name)
    )
