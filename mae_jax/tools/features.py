"""Writes features of images to a file: `python -m mae_jax features`.

Nothing is masked and nothing is random: the same images give the same features.
"""

import contextlib
import functools
import math
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import numpy as np
from jax.sharding import Mesh

from mae_jax.config import MeshConfig, lookup
from mae_jax.data import image_files, prepare
from mae_jax.distributed import sharding
from mae_jax.tools import cli, feature_extractor, image_stream
from mae_jax.utils import atomic_write, console, table_file
from mae_jax.utils.errors import ConfigError

_NAMES = 4096  # names written at a time
_CHUNK = 2**24  # bytes copied at a time
_Batch = tuple[list[np.ndarray], np.ndarray]
_float32 = functools.partial(np.frombuffer, dtype=np.float32)


def write(
  checkpoint: cli.Path,
  images: cli.Path,
  out: cli.Path,
  *,
  pool: str = "mean",
  layer: int | None = None,
  layers: cli.Integers = (),
  image_size: cli.Size | None = None,
  fit: str | None = None,
  batch_size: int = 64,
  mesh: Mesh | None = None,
) -> None:
  """Writes features of images to an .npz or a .parquet file.

  The file has names, features [N, D] ([N, 1 + L, D] with --pool=all, [N, rows,
  columns, D] with --pool=grid) and readable: False where an image cannot be
  read, and its features are NaN. With --layers=3,6 it has features_3 and
  features_6.

  Args:
    checkpoint: a workdir (its newest checkpoint), one of its
      checkpoints/STEP, weights of facebook, transformers or timm,
      hf://ORG/NAME on the Hugging Face Hub, or digits, a small network that
      comes with this package.
    images: one image, or a folder with all its subfolders; prepared as in
      evaluation of the checkpoint's run.
    out: an .npz file, on a disk or in a bucket (gs://...); or a .parquet file
      with a row for each image, for --pool=mean and cls. It appears when all is
      done.
    pool: mean of the patch tokens, cls token, all tokens with the class token
      first, or grid, the patch tokens as [rows, columns, D].
    layer: the block after which tokens are taken, 1 for the first; by default
      the last. Tokens of the last block pass the encoder's final norm, if it
      has one; earlier ones are raw. An encoder fine-tuned with mean pooling has
      no final norm: its last tokens are raw too, but their mean passes the norm
      before the head (fc_norm).
    layers: several such blocks as 3,6,9,12, in one pass.
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
  table_file.check(out, (".npz", ".parquet"))
  lookup(feature_extractor.POOLS, pool, "--pool")
  if layers and layer is not None:
    raise ConfigError(
      f"--layer={layer} and --layers={','.join(map(str, layers))}: give one"
    )
  if out.endswith(".parquet") and pool not in ("mean", "cls"):
    raise ConfigError(
      f"--out={out} has a row for each image, and --pool={pool} gives many: "
      "name an .npz file, or use --pool=mean or cls"
    )
  image_stream.check(checkpoint, images, batch_size, fit=fit)
  mesh = mesh or sharding.make_mesh(MeshConfig())
  with atomic_write.atomic_file(out) as file:
    network = feature_extractor.from_checkpoint(
      checkpoint,
      mesh,
      pool=pool,
      layer=layer,
      layers=layers or None,
      image_size=image_size,
    )
    data = prepare.with_fit(network.data, fit)
    source = image_files.open_images(images, data)
    shape = (len(source.names), *network.shape)
    names = ["features"]
    if layers:
      names = [f"features_{each}" for each in network.layers]
    atomic_write.check_space(out, 4 * math.prod(shape) * len(names))
    batches = _batches(
      image_stream.stream(
        network.apply,
        network.params,
        source,
        data,
        mesh=mesh,
        batch_size=batch_size,
      )
    )
    if out.endswith(".parquet"):
      bad = _write_table(file, out, source.names, names, batches)
    else:
      bad = _write_arrays(file, source.names, names, shape, batches)
  blocks = ", ".join(map(str, network.layers))
  console.info(
    f"{out}: features {list(shape)} after block {blocks} of "
    f"{image_stream.count(shape[0], bad)}, in {time.monotonic() - began:.1f} s"
  )


def _batches(stream: Iterable[tuple[Any, np.ndarray]]) -> Iterator[_Batch]:
  """Yields an array for each block, NaN for unreadable images, and bool [n]."""
  for features, good in stream:
    parts = features if isinstance(features, tuple) else (features,)
    arrays = [np.array(part, np.float32) for part in parts]
    for array in arrays:
      array[~good] = np.nan
    yield arrays, good


def _write_table(
  file: IO[bytes],
  path: str,
  names: Sequence[str],
  keys: Sequence[str],
  batches: Iterable[_Batch],
) -> int:
  """Writes a row for each image; returns the number of unreadable ones."""
  bad = start = 0
  with table_file.write(file, path) as table:
    for arrays, good in batches:
      part = names[start : start + len(good)]
      found = dict(zip(keys, arrays, strict=True))
      table.add({"name": part, "readable": good, **found})
      start += len(good)
      bad += int((~good).sum())
  return bad


def _write_arrays(
  file: IO[bytes],
  names: Sequence[str],
  keys: Sequence[str],
  shape: tuple[int, ...],
  batches: Iterable[_Batch],
) -> int:
  """Writes named arrays; returns the number of unreadable images."""
  readable: list[np.ndarray] = []
  with zipfile.ZipFile(file, "w") as npz, contextlib.ExitStack() as stack:
    # Names come first, so that problems with them are reported early.
    _add_names(npz, names)
    # A file of .npz takes one array after the other: others wait on the disk.
    others = [stack.enter_context(tempfile.TemporaryFile()) for _ in keys[1:]]

    def rows() -> Iterator[np.ndarray]:
      for (first, *rest), good in batches:
        readable.append(good)
        for other, part in zip(others, rest, strict=True):
          other.write(part.tobytes())
        yield first

    atomic_write.add_array(npz, keys[0], shape, np.float32, rows())
    for key, other in zip(keys[1:], others, strict=True):
      other.seek(0)
      parts = map(_float32, iter(functools.partial(other.read, _CHUNK), b""))
      atomic_write.add_array(npz, key, shape, np.float32, parts)
    atomic_write.add_array(npz, "readable", shape[:1], np.bool_, readable)
  return int((~np.concatenate(readable)).sum())


def _add_names(npz: zipfile.ZipFile, names: Sequence[str]) -> None:
  parts = (
    np.array(names[start : start + _NAMES])
    for start in range(0, len(names), _NAMES)
  )
  longest = max(map(len, names))
  atomic_write.add_array(npz, "names", (len(names),), f"<U{longest}", parts)
