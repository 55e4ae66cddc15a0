"""Measures and plots how a run's network reconstructs held-out images."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from matplotlib.figure import Figure

from mae_jax.config import MeshConfig
from mae_jax.data import sources
from mae_jax.distributed import sharding
from mae_jax.evals import extract
from mae_jax.tools import reconstructor
from mae_jax.utils import image_grid

PSNR, SHARPNESS = "PSNR, dB", "sharpness"
IMAGES = 64  # number of held-out images to reconstruct
SHOWN = 8  # number of these in a picture


@dataclasses.dataclass(frozen=True)
class Reconstructions:
  """Held-out images, and their reconstructions.

  Attributes:
    images: [B, H, W, C] uint8, the original images.
    pasted: [B, H, W, C] uint8, with masked patches replaced by predictions.
    masked: [B, H, W] bool, True for pixels of masked patches.
    patch: height and width of a patch in pixels.
  """

  images: np.ndarray
  pasted: np.ndarray
  masked: np.ndarray
  patch: tuple[int, int]

  def figures(self) -> dict[str, float]:
    """Returns PSNR and sharpness of masked patches.

    Sharpness is the mean absolute difference of neighboring pixels of a masked
    patch, divided by that of the original images. A blurred patch is below 1.
    """
    error = self.pasted[self.masked] / 255.0 - self.images[self.masked] / 255.0
    return {
      PSNR: float(-10 * np.log10((error**2).mean())),
      SHARPNESS: edges(self.pasted, self.masked, self.patch)
      / edges(self.images, self.masked, self.patch),
    }


def reconstruct(workdir: pathlib.Path) -> Reconstructions:
  """Reconstructs held-out images with the newest checkpoint of a run.

  Random masks are equal for all runs with an equal mask ratio.
  """
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  network = reconstructor.load(workdir, mesh)
  source = sources.open_source(network.data, "eval")
  assert source is not None
  arrays, _, _ = extract.extract_source(
    lambda _, batch: {"image": batch["image"]},
    {},
    source,
    network.data,
    mesh=mesh,
    batch_size=32,
    limit=IMAGES,
  )
  images = arrays["image"]
  masks = network.masks("random", network.mask_ratio, len(images), seed=0)
  found = network.paint(images, masks)
  return Reconstructions(
    images, found.pasted(images), found.hidden, network.patch_size
  )


def draw(rows: Mapping[str, Reconstructions], path: pathlib.Path) -> None:
  """Draws a row of reconstructions for each name, below the originals.

  Args:
    rows: reconstructions of the same images by name. The picture shows the
      visible patches of the first; others may mask different patches.
    path: path of a PNG file.
  """
  first = next(iter(rows.values()))
  shown = np.linspace(0, len(first.images) - 1, SHOWN).astype(int)
  visible = np.where(first.masked[..., None], 127, first.images)
  pictures = {"held-out images": first.images, "visible patches": visible}
  pictures |= {name: each.pasted for name, each in rows.items()}
  side = 0.9  # inches
  figure = Figure(
    figsize=(3 + side * SHOWN, side * len(pictures)), layout="constrained"
  )
  axes = figure.subplots(len(pictures), SHOWN, squeeze=False)
  for row, (name, images) in zip(axes, pictures.items(), strict=True):
    for cell, image in zip(row, images[shown], strict=True):
      cell.imshow(image_grid.to_rgb(image.astype(np.uint8)))
      cell.set(xticks=[], yticks=[])
      cell.spines[:].set_visible(False)
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")
  figure.savefig(path, dpi=100, metadata={"Software": None})


def edges(
  images: np.ndarray, where: np.ndarray, patch: tuple[int, int]
) -> float:
  """Returns the mean absolute difference of neighboring pixels of a patch.

  Differences across patch borders do not count: seams are not sharpness.

  Args:
    images: [B, H, W, C].
    where: [B, H, W] bool; a pair counts if both pixels are True.
    patch: height and width of a patch in pixels.
  """
  x = images.astype(np.float64)
  total, count = 0.0, 0
  for axis in (1, 2):
    both = np.logical_and(*_neighbors(where, axis))
    inside = np.arange(1, x.shape[axis]) % patch[axis - 1] > 0
    both &= inside[:, None] if axis == 1 else inside
    first, second = _neighbors(x, axis)
    total += np.abs(first - second)[both].sum()
    count += int(both.sum()) * x.shape[-1]
  return total / count


def _neighbors(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
  length = x.shape[axis]
  first = np.take(x, range(length - 1), axis)
  return first, np.take(x, range(1, length), axis)
