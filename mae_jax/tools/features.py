"""Writes features of images to a file: `python -m mae_jax features`.

Nothing is masked and nothing is random: the same images give the same features.
"""

import math
import time
import zipfile
from collections.abc import Iterator, Sequence

import numpy as np
from jax.sharding import Mesh

from mae_jax.config import MeshConfig, lookup
from mae_jax.data import image_files, prepare
from mae_jax.distributed import sharding
from mae_jax.tools import cli, feature_extractor, image_stream
from mae_jax.utils import atomic_write, console

_NAMES = 4096  # names written at a time


def write(
  checkpoint: cli.Path,
  images: cli.Path,
  out: cli.Path,
  *,
  pool: str = "mean",
  layer: int | None = None,
  image_size: cli.Size | None = None,
  fit: str | None = None,
  batch_size: int = 64,
  mesh: Mesh | None = None,
) -> None:
  """Writes features of images to an .npz file.

  The file has names, features [N, D] ([N, 1 + L, D] with --pool=all) and
  readable: False where an image cannot be read, and its features are NaN.

  Args:
    checkpoint: a workdir (its newest checkpoint), one of its
      checkpoints/STEP, weights of facebook, transformers or timm,
      hf://ORG/NAME on the Hugging Face Hub, or digits, a small network that
      comes with this package.
    images: one image, or a folder with all its subfolders; prepared as in
      evaluation of the checkpoint's run.
    out: the .npz file, on a disk or in a bucket (gs://...); it appears when
      all is done.
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
  began = time.monotonic()
  atomic_write.check_suffix(out, ".npz")
  lookup(feature_extractor.POOLS, pool, "--pool")
  image_stream.check(checkpoint, images, batch_size, fit=fit)
  mesh = mesh or sharding.make_mesh(MeshConfig())
  with atomic_write.atomic_file(out) as file:
    network = feature_extractor.from_checkpoint(
      checkpoint, mesh, pool=pool, layer=layer, image_size=image_size
    )
    data = prepare.with_fit(network.data, fit)
    source = image_files.open_images(images, data)
    shape = (len(source.names), *network.shape)
    atomic_write.check_space(out, 4 * math.prod(shape))
    with zipfile.ZipFile(file, "w") as npz:
      # Names come first, so that problems with them are reported early.
      _add_names(npz, source.names)
      readable: list[np.ndarray] = []

      def rows() -> Iterator[np.ndarray]:
        for features, good in image_stream.stream(
          network.apply,
          network.params,
          source,
          data,
          mesh=mesh,
          batch_size=batch_size,
        ):
          readable.append(good)
          features = np.array(features)
          features[~good] = np.nan
          yield features

      atomic_write.add_array(npz, "features", shape, np.float32, rows())
      atomic_write.add_array(npz, "readable", shape[:1], np.bool_, readable)
  bad = int((~np.concatenate(readable)).sum())
  console.info(
    f"{out}: features {list(shape)} after block {network.layer} of "
    f"{image_stream.count(shape[0], bad)}, in {time.monotonic() - began:.1f} s"
  )


def _add_names(npz: zipfile.ZipFile, names: Sequence[str]) -> None:
  parts = (
    np.array(names[start : start + _NAMES])
    for start in range(0, len(names), _NAMES)
  )
  longest = max(map(len, names))
  atomic_write.add_array(npz, "names", (len(names),), f"<U{longest}", parts)
