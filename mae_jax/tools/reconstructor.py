"""Reconstructs masked patches of images with a pre-trained network."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from mae_jax import conversion
from mae_jax.config import MeshConfig, check_name, lookup
from mae_jax.conversion import model_info
from mae_jax.distributed import sharding
from mae_jax.evals import load_model, reconstruction
from mae_jax.models import mae, masking, patchify
from mae_jax.utils import rng
from mae_jax.utils.errors import ConfigError


class Reconstructor:
  """A pre-trained network that reconstructs masked patches.

  Attributes:
    data: how images are prepared.
    patch_size: height and width of a patch.
    grid: rows and columns of patches, L in all.
    mask_ratio: mask ratio of its training.
    normalized: whether it predicts normalized patches.
    description: the network in a few words.
  """

  def __init__(self, found: load_model.LoadedModel, mesh: Mesh):
    """Prepares a network that has a decoder, on devices."""
    model = found.autoencoder
    self._variables = mae.apply_variables(found.params)
    # Each number of visible patches compiles a program: a rolled scan compiles
    # faster.
    encoder, decoder = (
      part.clone(config=dataclasses.replace(part.config, unroll=1))
      for part in (model.encoder, model.decoder)
    )
    self._model = model.clone(encoder=encoder, decoder=decoder)
    self._mesh = mesh
    self.data = found.config.data
    self.patch_size = self._model.encoder.patch_size
    self.grid = patchify.grid_size(self.data.image_size, self.patch_size)
    self.mask_ratio = found.config.objective.mask_ratio
    self.normalized = self._model.target.normalized
    self.description = found.description

  def masks(
    self,
    strategy: str,
    mask_ratio: float,
    count: int,
    seed: int,
    index: int = 0,
  ) -> np.ndarray:
    """Samples masks.

    Args:
      strategy: a name in `masking.STRATEGIES`.
      mask_ratio: share of masked patches.
      count: number of masks, all different except for "grid".
      seed: the seed.
      index: number of the image.

    Returns:
      bool [count, L], True for masked patches, with equal numbers of them.

    Raises:
      ConfigError: if there is no such strategy, or no such mask.
    """
    draw = lookup(masking.STRATEGIES, strategy, "--strategy")
    try:
      keep = masking.num_kept(self.grid[0] * self.grid[1], mask_ratio)
      noise = draw(rng.key(seed, "reconstruct", index), count, self.grid, keep)
    except ValueError as error:
      text = str(error).replace("mask_ratio", "--mask_ratio")
      raise ConfigError(text) from None
    return np.asarray(masking.random_masking(noise, keep).mask) > 0

  def predict(self, pixels: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Predicts patches.

    Args:
      pixels: uint8 [B, H, W, C] of the network's image size.
      hidden: bool [B, L], the masked patches, equally many in each image.

    Returns:
      [B, L, P] predicted patches, in the scale of the target.

    Raises:
      ValueError: if the numbers of masked patches differ, or all are masked.
    """
    counts = set((~hidden).sum(axis=1).tolist())
    if len(counts) != 1 or 0 in counts:
      raise ValueError(f"of the images {sorted(counts)} patches are shown")
    with jax.set_mesh(self._mesh):
      return np.asarray(
        self._apply(self._variables, pixels, hidden, num_keep=counts.pop())
      )

  def paint(
    self,
    pixels: np.ndarray,
    hidden: np.ndarray,
    *,
    truth: np.ndarray | None = None,
    statistics: str = "visible",
    passes: int = 1,
  ) -> reconstruction.Reconstructed:
    """Reconstructs images.

    Args:
      pixels: images, as in `predict`.
      hidden: masked patches, as in `predict`.
      truth: images of the same shape for "true" statistics; None for `pixels`.
      statistics: a name in `reconstruction.STATISTICS`.
      passes: with more than one, the visible patches are divided into this many
        parts and the network sees one part at a time. A patch is the mean of
        its predictions. The result's mask has the patches that were masked in
        all passes.

    Raises:
      ConfigError: if there are fewer visible patches than passes.
    """
    if statistics != "true" or truth is None:
      truth = pixels
    painted = [
      self.draw(truth, self.predict(pixels, mask), mask, statistics)
      for mask in (_parted(hidden, passes) if passes > 1 else [hidden])
    ]
    if passes == 1:
      return painted[0]
    weights = np.stack([each.hidden for each in painted])[..., None]
    total = np.stack([each.reconstruction for each in painted]) * weights
    mean = total.sum(axis=0, dtype=np.float64) / weights.sum(axis=0)
    cover = hidden.reshape(-1, *self.grid).repeat(self.patch_size[0], axis=1)
    return reconstruction.Reconstructed(
      np.round(mean).astype(np.uint8), cover.repeat(self.patch_size[1], axis=2)
    )

  def draw(
    self,
    truth: np.ndarray,
    patches: np.ndarray,
    hidden: np.ndarray,
    statistics: str = "visible",
  ) -> reconstruction.Reconstructed:
    """Turns predicted patches [B, L, P] into images; arguments as `paint`."""
    return reconstruction.to_images(
      truth,
      patches,
      hidden.astype(np.float32),
      patch_size=self.patch_size,
      mean=self.data.mean,
      std=self.data.std,
      normalized=self.normalized,
      statistics=statistics,
    )

  @functools.cached_property
  def _apply(self) -> Any:
    def apply(
      variables: Any, pixels: jax.Array, hidden: jax.Array, *, num_keep: int
    ) -> jax.Array:
      x = patchify.normalize(pixels, self.data.mean, self.data.std)
      masked = masking.random_masking(hidden.astype(jnp.float32), num_keep)
      out: Any = self._model.apply(variables, x, masked, method="reconstruct")
      return out

    return jax.jit(apply, static_argnames="num_keep")


def load(
  checkpoint: epath.PathLike,
  mesh: Mesh | None = None,
  target: str | None = None,
  image_size: tuple[int, int] | None = None,
) -> Reconstructor:
  """Loads a checkpoint that has a decoder.

  Args:
    checkpoint: a workdir, a checkpoint, or weights.
    mesh: the devices; None for the first alone.
    target: norm_pix or raw, for weights that do not say what they predict.
    image_size: height and width; None for the checkpoint's.

  Raises:
    ConfigError: if there is no such checkpoint, or it has another target.
  """
  if target is not None:
    check_name(model_info.TARGETS, target, "--target")
  mesh = mesh or sharding.make_mesh(MeshConfig(), sharding.devices()[:1])
  hints = conversion.ModelOverrides(target=target, insist=target is not None)
  found = load_model.load(checkpoint, mesh, hints, decoder=True)
  network = Reconstructor(load_model.resize(found, image_size, mesh), mesh)
  if target is not None and model_info.TARGETS[target] != network.normalized:
    raise ConfigError(
      f"--target={target} contradicts {checkpoint}: leave the flag out"
    )
  return network


def _parted(hidden: np.ndarray, passes: int) -> list[np.ndarray]:
  """Divides the visible patches into masks, each with one part visible."""
  shown = int((~hidden[0]).sum()) // passes
  if not shown:
    raise ConfigError(
      f"--fill=multipass: {int((~hidden[0]).sum())} visible patches cannot be "
      f"parted in {passes}: hide less"
    )
  random = np.random.default_rng(0)
  masks = [np.ones_like(hidden) for _ in range(passes)]
  for row, covered in enumerate(hidden):
    order = random.permutation(np.flatnonzero(~covered))
    for number, mask in enumerate(masks):
      mask[row, order[number * shown : (number + 1) * shown]] = False
  return masks
