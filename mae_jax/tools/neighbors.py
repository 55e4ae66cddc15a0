"""Finds images with similar features: `python -m mae_jax neighbors`."""

import bisect
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from mae_jax.config import DataConfig, MeshConfig, lookup
from mae_jax.data import image_files, prepare
from mae_jax.distributed import sharding
from mae_jax.tools import (
  cli,
  feature_extractor,
  image_stream,
  output_folder,
  photo,
)
from mae_jax.utils import console, image_grid
from mae_jax.utils.errors import ConfigError

TABLE = "neighbors.csv"
COLUMNS = ("query", "rank", "file", "similarity")
_QUERIES = 64
_COLUMNS = 12  # neighbors on the sheet; the table has all


class Neighbor(NamedTuple):
  """An image, and the cosine of its features with the query's."""

  name: str
  similarity: float


def write(
  checkpoint: cli.Path,
  images: cli.Path,
  query: cli.Path,
  out: cli.Path,
  *,
  count: int = 7,
  pool: str = "mean",
  layer: int | None = None,
  image_size: cli.Size | None = None,
  fit: str | None = None,
  batch_size: int = 64,
  mesh: Mesh | None = None,
) -> None:
  """Finds the images with the most similar features.

  Writes a sheet of pictures and a table. Similarity is the cosine of features.

  Args:
    checkpoint: a workdir (its newest checkpoint), one of its
      checkpoints/STEP, weights of facebook, transformers or timm,
      hf://ORG/NAME on the Hugging Face Hub, or digits, a small network that
      comes with this package.
    images: one image, or a folder with all its subfolders; prepared as in
      evaluation of the checkpoint's run.
    query: the image whose neighbors are wanted, or a folder of at most 64; it
      may be among the images, and no image is its own neighbor.
    out: a folder, which appears when all is done; a folder that this command
      made before is replaced.
    count: neighbors of each query.
    pool: mean of the patch tokens, cls token, all tokens with the class token
      first, or grid, the patch tokens as [rows, columns, D].
    layer: the block after which tokens are taken, 1 for the first; by default
      the last. Tokens of the last block pass the encoder's final norm, if it
      has one; earlier ones are raw. An encoder fine-tuned with mean pooling has
      no final norm: its last tokens are raw too, but their mean passes the norm
      before the head (fc_norm).
    image_size: 224, or height and width as 192,256; by default the
      checkpoint's. Positions are interpolated, as in fine-tuning.
    fit: crop: the middle of each image; squash: all of it; by default as in
      evaluation (data.eval_fit).
    batch_size: images at a time over all devices, rounded up to a multiple of
      their number.
    mesh: the devices; None for all.

  Raises:
    ConfigError: if something cannot work, or no image can be read. `out` is as
      it was.
  """
  settings = dict(locals())
  for name in ("out", "batch_size", "mesh"):
    del settings[name]
  began = time.monotonic()
  cli.at_least("count", count)
  lookup(feature_extractor.POOLS, pool, "--pool")
  image_stream.check(checkpoint, images, batch_size, pictures=out, fit=fit)
  if not query or not os.path.exists(query):
    raise ConfigError(f"--query={query}: there is no such folder or file")
  mesh = mesh or sharding.make_mesh(MeshConfig())
  with output_folder.replacing(out, "neighbors", settings) as album:
    network = feature_extractor.from_checkpoint(
      checkpoint, mesh, pool=pool, layer=layer, image_size=image_size
    )
    network = dataclasses.replace(
      network, data=prepare.with_fit(network.data, fit)
    )
    asked = image_files.open_images(query, network.data)
    if len(asked.names) > _QUERIES:
      raise ConfigError(
        f"--query={query} has {len(asked.names)} images, more than the "
        f"{_QUERIES} that a sheet has room for: name a folder of fewer"
      )
    source = image_files.open_images(images, network.data)

    def stream(which: image_files.Images) -> Iterator[tuple[str, np.ndarray]]:
      """Yields names and normalized features of readable images."""
      names = iter(which.names)
      for features, readable in image_stream.stream(
        network.apply,
        network.params,
        which,
        network.data,
        mesh=mesh,
        batch_size=batch_size,
      ):
        rows = np.reshape(features, (len(readable), -1))
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.maximum(lengths, np.finfo(np.float32).tiny)
        for row, good in zip(rows, readable, strict=True):
          name = next(names)
          if good:
            yield name, row

    def same(one: str, other: str) -> bool:
      paths = photo.path_of(query, one), photo.path_of(images, other)
      return os.path.realpath(paths[0]) == os.path.realpath(paths[1])

    found, among = nearest(dict(stream(asked)), stream(source), count, same)
    if not any(found.values()):
      raise ConfigError(
        f"--images={images} has nothing but the query: name a folder of others"
      )
    album.png(output_folder.SHEET, _sheet(found, query, images, network.data))
    rows = [
      (name, rank, near.name, f"{near.similarity:.6f}")
      for name, neighbors in found.items()
      for rank, near in enumerate(neighbors, 1)
    ]
    album.table(TABLE, [COLUMNS, *rows])
  nearer = f", of the nearest {_COLUMNS}" if count > _COLUMNS else ""
  console.info(
    f"{out}: neighbors of "
    f"{image_stream.readable(len(found), len(asked.names))} among "
    f"{image_stream.readable(among, len(source.names))}, in "
    f"{time.monotonic() - began:.1f} s; look at "
    f"{os.path.join(out, output_folder.SHEET)}{nearer}"
  )


def nearest(
  queries: Mapping[str, np.ndarray],
  others: Iterable[tuple[str, np.ndarray]],
  count: int,
  same: Callable[[str, str], bool],
) -> tuple[dict[str, list[Neighbor]], int]:
  """Finds the images with the largest cosine similarity.

  Args:
    queries: features [D] of unit length by name.
    others: names and features; at most `count` for each query are in memory.
    count: number of neighbors of a query.
    same: whether a query and another image are the same file.

  Returns:
    The neighbors of each query, nearest first, and the number of `others`.
  """
  found: dict[str, list[Neighbor]] = {name: [] for name in queries}
  number = 0
  for number, (name, row) in enumerate(others, 1):  # noqa: B007
    for query, wanted in queries.items():
      if not same(query, name):
        bisect.insort(
          found[query],
          Neighbor(name, float(row @ wanted)),
          key=lambda each: -each.similarity,
        )
        del found[query][count:]
  return found, number


def _sheet(
  found: Mapping[str, Sequence[Neighbor]],
  query: str,
  images: str,
  data: DataConfig,
) -> np.ndarray:
  columns = min(max(map(len, found.values())), _COLUMNS)
  rows: list[list[np.ndarray | None]] = []
  words = []
  for name, neighbors in found.items():
    shown, texts = [_shown(query, name, data)], [name]
    for near in neighbors[:columns]:
      shown.append(_shown(images, near.name, data))
      texts.append(f"{near.similarity:.3f}\n{near.name}")
    empty = 1 + columns - len(shown)
    rows.append([*shown, *[None] * empty])
    words.append([*texts, *[""] * empty])
  return image_grid.draw_grid(
    rows, ["query", *map(str, range(1, columns + 1))], words
  )


def _shown(images: str, name: str, data: DataConfig) -> np.ndarray:
  return photo.open_photo(photo.path_of(images, name), data).picture
