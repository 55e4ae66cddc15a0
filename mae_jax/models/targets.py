"""What a decoder is to predict of a patch: modules of pixels [..., P].

A target that learns from data (`Fitted`) keeps what it learned in the
collection FITTED, which belongs to the state and to no optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.models import losses

FITTED = "fitted"  # the collection, and its role in the state


class Target(nn.Module):
  """Pixels as they are: the network's input, patch by patch.

  Attributes:
    dim: T, values of the target of a patch.
    normalized: whether it lacks mean and deviation of the patch.
  """

  dim: int
  normalized: ClassVar[bool] = False

  def __call__(self, patches: jax.Array) -> jax.Array:
    """[..., P] -> [..., T]."""
    return patches

  def to_patches(self, target: jax.Array) -> jax.Array:
    """[..., T] -> [..., P], as near as the target alone tells."""
    return target


class NormalizedPixels(Target):
  """Zero mean and unit variance in each patch ("norm_pix")."""

  normalized: ClassVar[bool] = True

  def __call__(self, patches: jax.Array) -> jax.Array:
    """[..., P] -> [..., P]."""
    return losses.normalize_patches(patches)


@runtime_checkable
class Fitted(Protocol):
  """A target that learns from patches before training."""

  def statistics(
    self, patches: jax.Array, weights: jax.Array
  ) -> dict[str, jax.Array]:
    """What `fit` needs of some patches; sums may be added.

    Args:
      patches: [B, L, P].
      weights: [B], 0 or False for images that do not count.
    """

  def fit(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The collection FITTED, from `statistics` of all patches in float64."""


class PrincipalComponents(Target):
  """The largest coefficients of a PCA of patches (He et al. 2021, table 1d).

  Attributes:
    patch_dim: P.
  """

  patch_dim: int

  def setup(self) -> None:
    """What is fitted: zeros until then."""
    shape = (self.patch_dim, self.dim)
    self.mean = self.variable(FITTED, "mean", jnp.zeros, shape[:1])
    self.basis = self.variable(FITTED, "basis", jnp.zeros, shape)

  def __call__(self, patches: jax.Array) -> jax.Array:
    """[..., P] -> [..., T]."""
    return _matmul_float32(patches - self.mean.value, self.basis.value)

  def to_patches(self, target: jax.Array) -> jax.Array:
    """[..., T] -> [..., P], without what the other components hold."""
    return _matmul_float32(target, self.basis.value.T) + self.mean.value

  @nn.nowrap
  def statistics(
    self, patches: jax.Array, weights: jax.Array
  ) -> dict[str, jax.Array]:
    """See `moments`."""
    return moments(patches, weights)

  @nn.nowrap
  def fit(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """See `principal_components`."""
    count, total, products = sums["count"], sums["sum"], sums["products"]
    return principal_components(float(count), total, products, self.dim)


def _norm_pix(patch_dim: int, components: int) -> Target:
  del components
  if patch_dim < 2:
    raise ValueError(
      "target='norm_pix' needs patches of at least two values; these have one: "
      "use larger patches, or target='raw'"
    )
  return NormalizedPixels(patch_dim)


def _pca(patch_dim: int, components: int) -> Target:
  if not 1 <= components <= patch_dim:
    raise ValueError(
      f"pca_components={components} is not in 1..{patch_dim}, the values of a "
      "patch"
    )
  return PrincipalComponents(components, patch_dim)


# What is predicted, by name: from P and a number of components.
TARGETS: dict[str, Callable[[int, int], Target]] = {
  "norm_pix": _norm_pix,
  "raw": lambda patch_dim, components: Target(patch_dim),
  "pca": _pca,
}


def _matmul_float32(x: jax.Array, kernel: jax.Array) -> jax.Array:
  # In float32 on any device: it is what predictions are held against.
  return jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)


def moments(patches: jax.Array, weights: jax.Array) -> dict[str, jax.Array]:
  """What `principal_components` needs of some patches; sums may be added.

  Args:
    patches: [B, L, P].
    weights: [B], 0 or False for images that do not count.

  Returns:
    "count", "sum" [P] and "products" [P, P], float32.
  """
  weighted = patches * weights[:, None, None]
  return {
    "count": weights.sum() * patches.shape[1],
    "sum": weighted.sum(axis=(0, 1)),
    "products": jnp.einsum(
      "blp,blq->pq", weighted, patches, precision=jax.lax.Precision.HIGHEST
    ),
  }


def principal_components(
  count: float, total: np.ndarray, products: np.ndarray, components: int
) -> dict[str, np.ndarray]:
  """The PCA of patches, from sums of them in float64.

  Args:
    count: of patches.
    total: [P] their sum.
    products: [P, P] sum of their outer products.
    components: T.

  Returns:
    "mean" [P] and "basis" [P, T], orthonormal columns, the largest variance
    first; of each the entry farthest from 0 is positive.
  """
  mean = total / count
  _, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
  basis = vectors[:, ::-1][:, :components]
  largest = np.abs(basis).argmax(axis=0)
  basis = basis * np.sign(basis[largest, np.arange(components)])
  return {
    "mean": mean.astype(np.float32),
    "basis": basis.astype(np.float32),
  }
