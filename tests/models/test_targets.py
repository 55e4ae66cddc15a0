"""Prediction targets: principal components equal scikit-learn's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import decomposition

from mae_jax.models import targets
from tests.helpers import numpy_reference, tiny


def patches(count: int = 40, length: int = 16, dim: int = 12) -> np.ndarray:
  """Samples [B, L, P], correlated, off the origin."""
  random = np.random.default_rng(3)
  mixed = random.normal(size=(count, length, dim)) @ random.normal(
    size=(dim, dim)
  )
  return (mixed + random.normal(size=dim)).astype(np.float32)


def fit(values: np.ndarray, weights: np.ndarray, components: int):
  """Fits as a run does: sums over batches, then the decomposition."""
  total = None
  for rows in np.split(np.arange(len(values)), 4):
    found = jax.tree.map(
      np.float64, targets.moments(values[rows], weights[rows])
    )
    total = found if total is None else jax.tree.map(np.add, total, found)
  return targets.principal_components(
    total["count"], total["sum"], total["products"], components
  )


@pytest.mark.parametrize("components", [1, 5, 12])
def test_components_are_those_of_scikit_learn(components: int):
  values = patches()
  weights = np.arange(len(values)) % 5 > 0  # every fifth image is left out
  found = fit(values, weights, components)
  rows = values[weights].reshape(-1, values.shape[-1])
  theirs = decomposition.PCA(components, svd_solver="full").fit(rows)
  np.testing.assert_allclose(found["mean"], theirs.mean_, rtol=1e-4, atol=1e-5)
  signs = np.sign((found["basis"] * theirs.components_.T).sum(axis=0))
  np.testing.assert_allclose(
    found["basis"], theirs.components_.T * signs, atol=2e-4
  )
  target = targets.PrincipalComponents(components, values.shape[-1])
  variables = {targets.FITTED: found}
  coefficients = target.apply(variables, values)
  wanted = theirs.transform(values.reshape(rows.shape[0] * 5 // 4, -1))
  np.testing.assert_allclose(
    coefficients, (wanted * signs).reshape(coefficients.shape), atol=5e-3
  )
  back = target.apply(variables, coefficients, method="to_patches")
  np.testing.assert_allclose(
    back,
    theirs.inverse_transform(wanted).reshape(values.shape),
    atol=5e-3,
  )
  assert (
    found["basis"][np.abs(found["basis"]).argmax(axis=0), range(components)] > 0
  ).all()


@pytest.mark.slow
def test_a_network_predicts_so_many_coefficients():
  model = tiny.model(
    objective={"target": "pca", "pca_components": 3, "mask_ratio": 0.5}
  )
  images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
  keys = {"params": jax.random.key(0), "mask": jax.random.key(1)}
  variables = model.init(keys, jnp.asarray(images))
  cut = numpy_reference.patchify(images, (2, 2))
  fitted = fit(np.asarray(cut), np.ones(4), 3)
  variables = variables | {targets.FITTED: {"target": fitted}}
  out = model.apply(variables, images, rngs={"mask": jax.random.key(2)})
  assert out.pred.shape == (4, 16, 3)
  wanted = numpy_reference.masked_mse(
    np.asarray(out.pred),
    (cut - fitted["mean"]) @ fitted["basis"],
    np.asarray(out.mask),
  )
  np.testing.assert_allclose(out.loss, wanted, rtol=1e-5)


def test_raw_pixels_are_the_patches_themselves():
  values = patches()
  target = targets.TARGETS["raw"](12, 96)
  np.testing.assert_array_equal(target.apply({}, values), values)
  assert not target.normalized
  assert targets.TARGETS["norm_pix"](12, 96).normalized
