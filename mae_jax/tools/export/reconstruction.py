"""Turns an autoencoder into a function of images and masks, for exports.

Any patches may be masked, in each image others: the encoder processes all
patches, and its attention ignores the masked ones. The result is that of the
network, which shuffles the visible patches and processes no others.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from mae_jax.config import DataConfig
from mae_jax.evals import load_model, reconstruction
from mae_jax.models import factory, losses, mae, masking, patchify
from mae_jax.tools.export import verify
from mae_jax.tools.feature_extractor import ImageFunction

OUTPUT = "reconstruction"


@dataclasses.dataclass(frozen=True)
class MaskedFunction(ImageFunction):
  """A network as a function of images and masks.

  Attributes:
    num_patches: L, the length of a mask.
    shuffled: computes `apply` as in training, for `verify.random_inputs`.
  """

  num_patches: int
  shuffled: Callable[..., jax.Array]

  @property
  def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Images, and a mask [L] of each, True for masked patches."""
    mask = jax.ShapeDtypeStruct((self.num_patches,), jnp.bool)
    return super().inputs | {"mask": mask}

  @property
  def reference(self) -> Callable[..., jax.Array]:
    """The network's own computation of `apply`."""
    return self.shuffled


def from_checkpoint(
  checkpoint: epath.PathLike,
  image_size: tuple[int, int] | None,
  dtype: str,
  platform: str,
) -> MaskedFunction:
  """Loads a network that has a decoder.

  Args:
    checkpoint: a workdir, a checkpoint, or weights.
    image_size: height and width; None for the checkpoint's.
    dtype: dtype of activations, a name in `factory.DTYPES`.
    platform: the platform to run on, as in `factory.masked_autoencoder`.

  Raises:
    ConfigError: if there is no such checkpoint.
  """
  mesh = verify.cpu_mesh()
  found = load_model.load(checkpoint, mesh, decoder=True)
  found = load_model.resize(found, image_size, mesh)
  settings = dataclasses.replace(found.config.model, dtype=dtype)
  config = dataclasses.replace(found.config, model=settings)
  whole = found.autoencoder
  model = whole.clone(
    encoder=factory.with_computation(whole.encoder, config, platform),
    decoder=factory.with_computation(whole.decoder, config, platform),
  )
  length = model.decoder.grid[0] * model.decoder.grid[1]

  def apply(variables: Any, pixels: jax.Array, mask: jax.Array) -> jax.Array:
    return _reconstruct(
      model, config.data, variables, pixels, masking.masking_in_place(mask)
    )

  def shuffled(variables: Any, pixels: jax.Array, mask: jax.Array) -> jax.Array:
    num_keep = length - verify.num_masked(length)
    masked = masking.random_masking(mask.astype(jnp.float32), num_keep)
    return _reconstruct(model, config.data, variables, pixels, masked)

  return MaskedFunction(
    apply,
    mae.apply_variables(found.params),
    config.data,
    OUTPUT,
    {"patch_size": list(model.encoder.patch_size)},
    length,
    shuffled,
  )


def _reconstruct(
  model: mae.MaskedAutoencoder,
  data: DataConfig,
  variables: Any,
  pixels: jax.Array,
  masked: masking.Masking,
) -> jax.Array:
  """Returns [B, H, W, C] in the range of pixels, with visible ones as given.

  Patches that were predicted normalized get brightness and contrast as in
  `evals.reconstruction`.
  """
  x = patchify.normalize(pixels, data.mean, data.std)
  pred: Any = model.apply(variables, x, masked, method="reconstruct")
  size = model.encoder.patch_size
  if model.target.normalized:
    mean, std = losses.patch_statistics(patchify.patchify(x, size))
    pred = reconstruction.with_visible_statistics(
      pred, mean, std, masked.mask, model.decoder.grid
    )
  cover = jnp.broadcast_to(masked.mask[:, :, None], pred.shape)
  painted, cover = (
    patchify.unpatchify(each, size, data.image_size) for each in (pred, cover)
  )
  painted = jnp.clip(
    painted * jnp.asarray(data.std) + jnp.asarray(data.mean), 0, 1
  )
  return jnp.where(cover > 0, painted * 255, pixels.astype(jnp.float32))
