"""Features of images, from any checkpoint to a file.

  python -m mae_jax features --checkpoint=WORKDIR --images=DIR --out=x.npz

The file has `names` [N], paths under DIR; `features` float32 [N, ...]; and
`readable` [N]: an image that cannot be read has a row of NaN. Nothing is masked
and nothing random, so that the same images give the same features.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jax.sharding import Mesh

from mae_jax.config import MeshConfig, lookup
from mae_jax.distributed import sharding
from mae_jax.tools import cli, feature_extractor
from mae_jax.utils import atomic_write

if TYPE_CHECKING:
  from mae_jax.data import sources

_NAMES = 4096  # written at a time


def write(
  checkpoint: str,
  images: str,
  out: str,
  *,
  pool: str = "mean",
  layer: int | None = None,
  image_size: tuple[int, int] | None = None,
  batch_size: int = 64,
  mesh: Mesh | None = None,
) -> None:
  """Writes the features of images to a file.

  Args:
    checkpoint: see `dialects.load_any`.
    images: a folder or one file.
    out: an .npz file, replaced when all is done.
    pool: "mean" of the patch tokens or "cls", [N, D]; "all" tokens, the class
      token first, [N, 1 + L, D].
    layer: see `extractor.from_checkpoint`.
    image_size: height and width; None for the checkpoint's.
    batch_size: images at a time.
    mesh: the devices; None for all.

  Raises:
    ConfigError: if something cannot work, or no image can be read. `out` is as
      it was.
  """
  began = time.monotonic()
  atomic_write.check_suffix(out, ".npz")
  lookup(feature_extractor.POOLS, pool, "--pool")
  cli.check(checkpoint, images, batch_size)
  mesh = mesh or sharding.make_mesh(MeshConfig())
  with atomic_write.atomic_file(out) as file:
    network = feature_extractor.from_checkpoint(
      checkpoint, mesh, pool=pool, layer=layer, image_size=image_size
    )
    source = cli.open_images(images, network.data)
    shape = (source.num_examples, *network.shape)
    atomic_write.check_space(out, 4 * math.prod(shape))
    with atomic_write.NpzWriter(file) as npz:
      # Names first: what is wrong with them is told before the long work.
      _add_names(npz, source)
      readable: list[np.ndarray] = []

      def rows() -> Iterator[np.ndarray]:
        for features, good in cli.stream(
          network.apply,
          network.params,
          source,
          network.data,
          mesh=mesh,
          batch_size=batch_size,
        ):
          readable.append(good)
          features = np.array(features)
          features[~good] = np.nan
          yield features

      npz.add("features", shape, np.float32, rows())
      npz.add("readable", shape[:1], np.bool_, readable)
  bad = int((~np.concatenate(readable)).sum())
  cli.info(
    f"{out}: features {list(shape)} after block {network.layer} of "
    f"{cli.count(shape[0], bad)}, in {time.monotonic() - began:.1f} s"
  )


def _add_names(npz: atomic_write.NpzWriter, source: sources.Indexed) -> None:
  total = source.num_examples
  longest = max(len(source.name(number)) for number in range(total))

  def parts() -> Iterator[np.ndarray]:
    for start in range(0, total, _NAMES):
      numbers = range(start, min(start + _NAMES, total))
      yield np.array([source.name(number) for number in numbers])

  npz.add("names", (total,), f"<U{longest}", parts())


def parser() -> cli.Parser:
  """The flags."""
  flags = cli.Parser(
    "features",
    "Writes features of images: an .npz file with names, features and readable "
    "(False where an image cannot be read: its features are NaN).",
  )
  flags.add_images()
  flags.add_argument(
    "--out",
    required=True,
    help="the .npz file, on a disk or in a bucket (gs://...); it appears when "
    "all is done",
  )
  flags.add_features()
  flags.set_defaults(pool="mean")
  return flags


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command."""
  cli.main(parser(), write, argv)
