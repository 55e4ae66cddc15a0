"""Draws what an encoder attends to: `python -m mae_jax attention`."""

import functools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from mae_jax.config import MeshConfig
from mae_jax.data import image_files, prepare
from mae_jax.distributed import sharding
from mae_jax.evals import attention_rollout
from mae_jax.models import patchify
from mae_jax.tools import cli, feature_extractor, image_stream, output_folder
from mae_jax.tools import photo as photos
from mae_jax.utils import colormaps, console, image_grid
from mae_jax.utils.errors import ConfigError

_FITTED = 64  # images used to fit the colors
_STRENGTH = 0.7  # opacity of a map over its image
_SUMMARY = ("original", "mean of heads", "rollout", "features")
SCALE = image_grid.ColorScale("inferno", "lowest", "highest of each map")
MAPS, TABLE = "attention.npz", "attention.csv"
COLUMNS = ("file", "map", "lowest", "highest", "entropy")


def write(
  checkpoint: cli.Path,
  images: cli.Path,
  out: cli.Path,
  *,
  layer: int | None = None,
  query: cli.Position | None = None,
  fit: str | None = None,
  image_size: cli.Size | None = None,
) -> None:
  """Draws pictures of what an encoder attends to.

  They show the attention of each head, attention rollout over all blocks
  (Abnar and Zuidema 2020), and three principal components of patch features as
  colors, the same for all images. Each map is scaled to its own range, which is
  written below it.

  The maps are saved as numbers too: attention.npz of an image has `heads`
  [heads, rows, columns] and `rollout` [rows, columns]; attention.csv has their
  lowest and highest value and their entropy in bits, at most log2(patches).

  Args:
    checkpoint: a workdir (its newest checkpoint), one of its
      checkpoints/STEP, weights of facebook, transformers or timm,
      hf://ORG/NAME on the Hugging Face Hub, or digits, a small network that
      comes with this package.
    images: one image, or a folder with all its subfolders.
    out: a folder, which appears when all is done; a folder that this command
      made before is replaced.
    layer: the block whose attention is drawn, 1 for the first; by default the
      last. Rollout and features are those after this block.
    query: row and column of the patch whose attention is drawn, 1,1 for the
      first; by default the class token.
    fit: crop: the middle of each image; squash: all of it; by default as in
      evaluation (data.eval_fit).
    image_size: 224, or height and width as 192,256; by default the
      checkpoint's. Larger images give finer maps.

  Raises:
    ConfigError: if something cannot work, or no image can be read. `out` is as
      it was.
  """
  settings = dict(locals())
  del settings["out"]
  began = time.monotonic()
  image_stream.check(checkpoint, images, pictures=out, fit=fit)
  mesh = sharding.make_mesh(MeshConfig(), sharding.devices()[:1])
  with output_folder.replacing(out, "attention", settings) as folder:
    checkpoint, heading = image_stream.title(checkpoint)
    network = feature_extractor.from_checkpoint(
      checkpoint, mesh, pool="all", layer=layer, image_size=image_size
    )
    data = prepare.with_fit(network.data, fit)
    params = network.params["encoder"]
    grid = patchify.grid_size(data.image_size, network.encoder.patch_size)
    token = _token(query, grid)
    asking = f"patch {query[0]},{query[1]}" if query else "class token"
    heading += f": block {network.layer}, attention of the {asking}"
    source = image_files.open_images(images, data)
    watch = attention_rollout.attention_function(network.encoder, data)
    read = functools.partial(photos.open_photos, source, data)
    features = [
      watch(params, photo.shown).patches for _, _, photo in read(first=_FITTED)
    ]
    colors = attention_rollout.FeatureColors(np.concatenate(features))
    folders = output_folder.image_folders(source.names)
    table: list[tuple[Any, ...]] = [COLUMNS]
    sheets = output_folder.Sheets[tuple[str, _Maps]](
      folder, lambda shown: _summary(shown, heading)
    )
    done = 0
    for _, name, photo in read(warned=_FITTED):
      done += 1
      seen = watch(params, photo.shown)
      maps = _Maps(photo.picture, seen, token, grid, colors)
      place = f"images/{folders[name]}"
      for kind, cell in maps.cells.items():
        folder.png(f"{place}/{kind.replace(' ', '_')}.png", cell)
      sheet = maps.sheet(f"{heading}\n{name}")
      folder.png(f"{place}/{output_folder.SHEET}", sheet)
      folder.arrays(f"{place}/{MAPS}", maps.arrays())
      table += [(name, *row) for row in maps.table()]
      sheets.add((name, maps))
    look_at = sheets.finish(out)
    folder.table(TABLE, table)
  console.info(
    f"{out}: attention of block {network.layer} in "
    f"{image_stream.readable(done, len(source.names))}, in "
    f"{time.monotonic() - began:.1f} s; three colors show "
    f"{100 * colors.shares.sum():.0f} % of the features' variance; "
    f"look at {look_at}"
  )


class _Maps:
  """The maps of one image, as pictures and as numbers.

  Attributes:
    cells: pictures by name, uint8 [H, W, C].
  """

  def __init__(
    self,
    picture: np.ndarray,
    seen: attention_rollout.AttentionMaps,
    token: int,
    grid: tuple[int, int],
    colors: attention_rollout.FeatureColors,
  ):
    """Draws the maps of an image, uint8 [H, W, C], for a query token."""
    heads = seen.weights[-1][:, token, 1:]  # [heads, L]
    rollout = attention_rollout.rollout(seen.weights)
    features = colors(seen.patches).reshape(*grid, 3)
    for axis in range(2):
      scale = picture.shape[axis] // grid[axis]
      features = features.repeat(scale, axis=axis)
    self._heads, self._rollout, self._grid = heads, rollout, grid
    self._values = {"mean of heads": heads.mean(axis=0), "rollout": rollout}
    self._values |= {f"head {k}": each for k, each in enumerate(heads, 1)}
    drawn = {
      name: overlay(picture, each, grid, 0 if name == "rollout" else token)
      for name, each in self._values.items()
    }
    self.cells = {
      "original": picture,
      "mean of heads": drawn.pop("mean of heads"),
      "rollout": drawn.pop("rollout"),
      "features": features,
      **drawn,
    }

  def caption(self, name: str) -> str:
    """Returns the range of a map; "" for other pictures."""
    if name not in self._values:
      return ""
    values = self._values[name]
    return f"{values.min():.2g} to {values.max():.2g}"

  def sheet(self, heading: str) -> np.ndarray:
    """Arranges all pictures, four in a row, with their names."""
    names = list(self.cells)
    names += [""] * (-len(names) % 4)
    rows = [names[start : start + 4] for start in range(0, len(names), 4)]
    return image_grid.draw_grid(
      [[self.cells.get(name) for name in row] for row in rows],
      [""] * 4,
      [
        [f"{name}\n{self.caption(name)}".strip() for name in row]
        for row in rows
      ],
      heading=heading,
      scale=SCALE,
    )

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns the attention of each head and the rollout, by patches."""
    return {
      "heads": self._heads.reshape(-1, *self._grid),
      "rollout": self._rollout.reshape(self._grid).astype(np.float32),
    }

  def table(self) -> list[tuple[Any, ...]]:
    """Returns a row for each map: name, range, and entropy in bits."""
    rows: list[tuple[Any, ...]] = []
    for name, values in self._values.items():
      share = values.astype(np.float64) / values.sum(dtype=np.float64)
      entropy = special.entr(share).sum() / np.log(2)
      rows.append((name, values.min(), values.max(), f"{entropy:.4f}"))
    return rows


def _summary(shown: Sequence[tuple[str, _Maps]], heading: str) -> np.ndarray:
  """Draws the sheet of several images."""
  return image_grid.draw_grid(
    [[maps.cells[kind] for kind in _SUMMARY] for _, maps in shown],
    _SUMMARY,
    [
      [name, *(maps.caption(kind) for kind in _SUMMARY[1:])]
      for name, maps in shown
    ],
    heading=heading,
    scale=SCALE,
  )


def overlay(
  image: np.ndarray, values: np.ndarray, grid: tuple[int, int], token: int = 0
) -> np.ndarray:
  """Draws a map over an image, scaled from its smallest to its largest value.

  Args:
    image: uint8 [H, W, C].
    values: [L], one for each patch.
    grid: rows and columns of patches.
    token: number of the patch to frame in white, from 1; 0 for none.

  Returns:
    uint8 [H, W, 3].
  """
  low, high = values.min(), values.max()
  scaled = (values - low) / max(high - low, np.finfo(np.float32).tiny)
  picture = np.round(255 * scaled).astype(np.uint8).reshape(*grid, 1)
  smooth = prepare.resize(picture, image.shape[:2])[..., 0]
  heat = colormaps.apply("inferno", smooth / 255)
  gray = image.mean(axis=-1, keepdims=True) / 255
  mixed = _STRENGTH * heat + (1 - _STRENGTH) * gray
  out = np.round(255 * mixed).astype(np.uint8)
  if token:
    row, column = divmod(token - 1, grid[1])
    height, width = (a // b for a, b in zip(image.shape, grid, strict=False))
    patch = out[row * height :, column * width :][:height, :width]
    patch[[0, -1]] = 255
    patch[:, [0, -1]] = 255
  return out


def _token(query: tuple[int, int] | None, grid: tuple[int, int]) -> int:
  if query is None:
    return 0
  row, column = query
  if not (1 <= row <= grid[0] and 1 <= column <= grid[1]):
    raise ConfigError(
      f"--query={row},{column}: the image has {grid[0]} rows and {grid[1]} "
      "columns of patches; the first is 1,1"
    )
  return 1 + (row - 1) * grid[1] + column - 1
