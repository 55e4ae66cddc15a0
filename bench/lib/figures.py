"""How near and how sharp held-out images are painted by a run's network."""

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
IMAGES = 64  # held out, that are painted
SHOWN = 8  # of those, in a picture


@dataclasses.dataclass(frozen=True)
class Painted:
  """Held-out images, painted where they were hidden.

  Attributes:
    images: [B, H, W, C] uint8, as they are.
    pasted: the same with hidden patches as they are painted.
    hidden: [B, H, W] bool.
    patch: height and width.
  """

  images: np.ndarray
  pasted: np.ndarray
  hidden: np.ndarray
  patch: tuple[int, int]

  def figures(self) -> dict[str, float]:
    """PSNR and sharpness of hidden patches.

    Sharpness is the mean absolute difference of neighboring pixels of one
    hidden patch, and 1 for the images themselves; what blurs has less.
    """
    error = self.pasted[self.hidden] / 255.0 - self.images[self.hidden] / 255.0
    return {
      PSNR: float(-10 * np.log10((error**2).mean())),
      SHARPNESS: edges(self.pasted, self.hidden, self.patch)
      / edges(self.images, self.hidden, self.patch),
    }


def paint(workdir: pathlib.Path) -> Painted:
  """By a run's network; the same random masks for all that hide as much."""
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  network = reconstructor.Reconstructor(workdir, mesh)
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
  hidden = network.masks("random", network.mask_ratio, len(images), seed=0)
  found = network.paint(images, hidden)
  return Painted(images, found.pasted(images), found.hidden, network.patch_size)


def draw(rows: Mapping[str, Painted], path: pathlib.Path) -> None:
  """A row of pictures for each name, under those that they are of.

  Args:
    rows: of the same images. What the first of them sees is shown; others may
      see less or more.
    path: a PNG.
  """
  first = next(iter(rows.values()))
  taken = np.linspace(0, len(first.images) - 1, SHOWN).astype(int)
  gray = np.where(first.hidden[..., None], 127, first.images)
  pictures = {"held-out images": first.images, "what is seen": gray}
  pictures |= {name: each.pasted for name, each in rows.items()}
  side = 0.9  # inches
  figure = Figure(
    figsize=(3 + side * SHOWN, side * len(pictures)), layout="constrained"
  )
  axes = figure.subplots(len(pictures), SHOWN, squeeze=False)
  for row, (name, every) in zip(axes, pictures.items(), strict=True):
    for cell, image in zip(row, every[taken], strict=True):
      cell.imshow(image_grid.to_rgb(image.astype(np.uint8)))
      cell.set(xticks=[], yticks=[])
      cell.spines[:].set_visible(False)
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")
  figure.savefig(path, dpi=100, metadata={"Software": None})


def edges(
  images: np.ndarray, where: np.ndarray, patch: tuple[int, int]
) -> float:
  """Mean absolute difference of neighbors in a patch, where both count.

  Between patches there may be seams, which are not sharpness.

  Args:
    images: [B, H, W, C].
    where: [B, H, W] bool.
    patch: height and width.
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
