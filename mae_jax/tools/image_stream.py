"""Runs a network over the images of --images, for the tools that have them."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from mae_jax import conversion
from mae_jax.config import DataConfig
from mae_jax.distributed import sharding
from mae_jax.tools import cli
from mae_jax.utils import console, storage
from mae_jax.utils.errors import ConfigError

if TYPE_CHECKING:
  from mae_jax.data import sources


def check(
  checkpoint: str, images: str, batch_size: int = 1, pictures: str = ""
) -> None:
  """Checks the flags that all these tools have, before anything is loaded.

  The folder `pictures` must lie apart from the images. Otherwise the next run
  would read the pictures as images, or the pictures would replace the images.

  Raises:
    ConfigError: if one cannot work.
  """
  cli.at_least("batch_size", batch_size)
  with storage.os_errors(checkpoint):
    conversion.locate(checkpoint)
  with storage.os_errors(images):
    if not images or not epath.Path(images).exists():
      raise ConfigError(f"--images={images}: there is no such folder or file")
  if pictures and not storage.is_remote(images):
    source, out = (
      pathlib.Path(os.path.realpath(x)) for x in (images, pictures)
    )
    if out in source.parents or (
      source.is_dir() and (out == source or source in out.parents)
    ):
      raise ConfigError(
        f"--out={pictures} and --images={images} lie in each other: name a "
        "folder for the pictures that is apart from the images"
      )


def open_images(path: str, data: DataConfig) -> sources.Indexed:
  """Opens the images of --images.

  Raises:
    ConfigError: if there is none.
  """
  # TensorFlow takes seconds to import; a wrong flag is reported before.
  from mae_jax.data.sources import files

  return files.open_files(path, data)


def stream(
  apply: Callable[[Any, jax.Array], Any],
  params: Any,
  source: sources.Indexed,
  data: DataConfig,
  *,
  mesh: Mesh,
  batch_size: int,
) -> Iterator[tuple[Any, np.ndarray]]:
  """Applies a network once to each image, prepared as in evaluation.

  Args:
    apply: jitted, from parameters and uint8 images [B, H, W, C] to a tree of
      [B, ...].
    params: its first argument.
    source: the images; warnings name those that cannot be read.
    data: how images are prepared.
    mesh: the devices.
    batch_size: images at a time, rounded up to a multiple of the devices.

  Yields:
    For the next n images, in order: the tree of [n, ...], and bool [n], False
    for images that cannot be read, whose values mean nothing.

  Raises:
    ConfigError: at the end, if no image could be read.
  """
  from mae_jax.data import pipeline
  from mae_jax.data.bad_images import BadImages

  left = source.num_examples
  # A few images need no full batch.
  size = -(-min(batch_size, left) // mesh.size) * mesh.size
  batches = pipeline.eval_batches(
    source,
    data,
    batch_size=size,
    rows=sharding.local_rows(mesh, size),
    unreadable=BadImages(),
  )
  any_readable = False
  with console.progress_bar(left) as bar:
    for batch in sharding.prefetch(mesh, batches, size, ahead=1):
      with jax.set_mesh(mesh):
        out = apply(params, batch["image"])
      out, readable = jax.device_get((out, batch["readable"]))
      real = min(left, size)  # the last batch is padded
      out, readable = jax.tree.map(lambda x, n=real: x[:n], (out, readable))
      any_readable |= readable.any()
      left -= real
      yield out, readable
      bar.update(real)
  if not any_readable:
    raise ConfigError(
      f"no image can be read, of {source.num_examples}: the warnings above say "
      "why; mend or replace them"
    )


def readable(number: int, total: int) -> str:
  """Describes how many of the images could be read, as part of a line."""
  if number == total:
    return count(number, 0)
  return f"{number} of {total} images ({total - number} cannot be read)"


def count(number: int, unreadable: int) -> str:
  """Describes a number of images, as part of a line."""
  text = f"{number} image{'' if number == 1 else 's'}"
  return f"{text} ({unreadable} cannot be read)" if unreadable else text
