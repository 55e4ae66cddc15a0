"""Prediction targets: modules that map pixels [..., P] to values [..., T].

A target that is fitted to data (`Fitted`) stores the result in the collection
FITTED. This belongs to the train state, but no optimizer changes it.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.models import losses

FITTED = "fitted"  # the collection, and its role in the train state


class Target(nn.Module):
  """The pixels of a patch, as the network receives them ("raw").

  Attributes:
    dim: T, number of target values per patch.
    normalized: whether the target lacks the patch's mean and deviation.
  """

  dim: int
  normalized: ClassVar[bool] = False

  def __call__(self, patches: jax.Array) -> jax.Array:
    """Computes the target: [..., P] -> [..., T]."""
    return patches

  def to_patches(self, target: jax.Array) -> jax.Array:
    """Converts targets [..., T] to patches [..., P], approximately."""
    return target


class NormalizedPixels(Target):
  """Zero mean and unit variance in each patch ("norm_pix")."""

  normalized: ClassVar[bool] = True

  def __call__(self, patches: jax.Array) -> jax.Array:
    """Normalizes each patch [..., P]."""
    return losses.normalize_patches(patches)


@runtime_checkable
class Fitted(Protocol):
  """A target that is fitted to patches before training."""

  def statistics(
    self, patches: jax.Array, weights: jax.Array
  ) -> dict[str, jax.Array]:
    """Computes statistics for `fit`; those of several batches may be added.

    Args:
      patches: [B, L, P].
      weights: [B], 0 or False for images to ignore.
    """

  def fit(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Computes the collection FITTED from summed float64 `statistics`."""


class PrincipalComponents(Target):
  """The largest coefficients of a PCA of patches (He et al. 2021, table 1d).

  Attributes:
    patch_dim: P.
  """

  patch_dim: int

  def setup(self) -> None:
    """Creates the fitted variables, zeros before `fit`."""
    shape = (self.patch_dim, self.dim)
    self.mean = self.variable(FITTED, "mean", jnp.zeros, shape[:1])
    self.basis = self.variable(FITTED, "basis", jnp.zeros, shape)

  def __call__(self, patches: jax.Array) -> jax.Array:
    """Projects [..., P] to [..., T]."""
    return _matmul_float32(patches - self.mean.value, self.basis.value)

  def to_patches(self, target: jax.Array) -> jax.Array:
    """Reconstructs [..., P] from [..., T], without the other components."""
    return _matmul_float32(target, self.basis.value.T) + self.mean.value

  @nn.nowrap
  def statistics(
    self, patches: jax.Array, weights: jax.Array
  ) -> dict[str, jax.Array]:
    """Computes `moments`."""
    return moments(patches, weights)

  @nn.nowrap
  def fit(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Computes `principal_components`."""
    count, total, products = sums["count"], sums["sum"], sums["products"]
    return principal_components(float(count), total, products, self.dim)


def _norm_pix(patch_dim: int, components: int) -> Target:
  del components
  if patch_dim < 2:
    raise ValueError(
      "target='norm_pix' needs at least two values per patch, but there is "
      "one: use larger patches, or target='raw'"
    )
  return NormalizedPixels(patch_dim)


def _pca(patch_dim: int, components: int) -> Target:
  if not 1 <= components <= patch_dim:
    raise ValueError(
      f"pca_components={components} is not in 1..{patch_dim}, the number of "
      "values per patch"
    )
  return PrincipalComponents(components, patch_dim)


# Functions from P and a number of components to a target.
TARGETS: dict[str, Callable[[int, int], Target]] = {
  "norm_pix": _norm_pix,
  "raw": lambda patch_dim, components: Target(patch_dim),
  "pca": _pca,
}


def _matmul_float32(x: jax.Array, kernel: jax.Array) -> jax.Array:
  # Exact float32 on any device, because the loss compares with the result.
  return jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)


def moments(patches: jax.Array, weights: jax.Array) -> dict[str, jax.Array]:
  """Sums the moments of patches for `principal_components`.

  Args:
    patches: [B, L, P].
    weights: [B], 0 or False for images to ignore.

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
  """Computes the PCA of patches from their float64 moments.

  Args:
    count: number of patches.
    total: [P], the sum of the patches.
    products: [P, P], the sum of their outer products.
    components: T.

  Returns:
    "mean" [P] and "basis" [P, T], orthonormal columns by decreasing variance;
    the entry of largest magnitude in each column is positive.
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
