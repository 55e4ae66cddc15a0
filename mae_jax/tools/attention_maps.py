"""Draws what an encoder attends to: `python -m mae_jax attention`."""

import functools
import os
import time

import numpy as np

from mae_jax.config import MeshConfig
from mae_jax.data import image_files, prepare
from mae_jax.distributed import sharding
from mae_jax.evals import attention_rollout
from mae_jax.models import patchify
from mae_jax.tools import cli, feature_extractor, image_stream, output_folder
from mae_jax.tools import photo as photos
from mae_jax.utils import colormaps, console, image_grid
from mae_jax.utils.errors import ConfigError

_ROWS = 24  # images on the sheet of all
_FITTED = 64  # images used to fit the colors
_STRENGTH = 0.7  # opacity of a map over its image
_SUMMARY = ("original", "mean of heads", "rollout", "features")


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
  colors, the same for all images.

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
  with output_folder.replacing(out, "attention", settings) as album:
    network = feature_extractor.from_checkpoint(
      checkpoint, mesh, pool="all", layer=layer, image_size=image_size
    )
    data = prepare.with_fit(network.data, fit)
    params = network.params["encoder"]
    grid = patchify.grid_size(data.image_size, network.encoder.patch_size)
    token = _token(query, grid)
    asking = f"patch {query[0]},{query[1]}" if query else "class token"
    source = image_files.open_images(images, data)
    watch = attention_rollout.attention_function(network.encoder, data)
    read = functools.partial(photos.open_photos, source, data)
    features = [
      watch(params, photo.shown).patches for _, _, photo in read(first=_FITTED)
    ]
    colors = attention_rollout.FeatureColors(np.concatenate(features))
    summary: list[list[np.ndarray]] = []
    names: list[list[str]] = []
    for done, (_, name, photo) in enumerate(read(warned=_FITTED), 1):
      seen = watch(params, photo.shown)
      cells = _cells(photo.picture, seen, token, grid, colors)
      for kind, cell in cells.items():
        album.png(f"images/{name}/{kind.replace(' ', '_')}.png", cell)
      album.png(f"images/{name}/{output_folder.SHEET}", _wrapped(cells))
      if done <= _ROWS:
        summary.append([cells[kind] for kind in _SUMMARY])
        names.append([name, f"block {network.layer}, {asking}", "", ""])
    album.png(
      output_folder.SHEET, image_grid.draw_grid(summary, _SUMMARY, names)
    )
  first = "" if len(names) == done else f", of the first {len(names)}"
  console.info(
    f"{out}: attention of block {network.layer} in "
    f"{image_stream.readable(done, len(source.names))}, in "
    f"{time.monotonic() - began:.1f} s; three colors show "
    f"{100 * colors.shares.sum():.0f} % of the features' variance; "
    f"look at {os.path.join(out, output_folder.SHEET)}{first}"
  )


def _cells(
  shown: np.ndarray,
  seen: attention_rollout.AttentionMaps,
  token: int,
  grid: tuple[int, int],
  colors: attention_rollout.FeatureColors,
) -> dict[str, np.ndarray]:
  """Makes the pictures of an image by name, uint8 [H, W, C]."""
  weights = seen.weights[-1][:, token, 1:]  # [heads, L]
  cells = {"original": shown}
  cells["mean of heads"] = overlay(shown, weights.mean(axis=0), grid, token)
  cells["rollout"] = overlay(
    shown, attention_rollout.rollout(seen.weights), grid
  )
  picture = colors(seen.patches).reshape(*grid, 3)
  for axis in range(2):
    picture = picture.repeat(shown.shape[axis] // grid[axis], axis=axis)
  cells["features"] = picture
  for number, each in enumerate(weights, 1):
    cells[f"head {number}"] = overlay(shown, each, grid, token)
  return cells


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


def _wrapped(cells: dict[str, np.ndarray]) -> np.ndarray:
  """Arranges all pictures of an image, four in a row, with their names."""
  names = list(cells)
  names += [""] * (-len(names) % 4)
  rows = [names[start : start + 4] for start in range(0, len(names), 4)]
  return image_grid.draw_grid(
    [[cells.get(name) for name in row] for row in rows], [""] * 4, rows
  )


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
