"""Runs a network over the images of --images, for the tools that have them."""

import collections
import contextlib
import os
import pathlib
from collections.abc import Callable, Generator, Iterator
from concurrent import futures
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from mae_jax import checkpoints, conversion
from mae_jax.config import DataConfig, check_name
from mae_jax.conversion import formats
from mae_jax.data import image_files, image_headers, prepare
from mae_jax.data.bad_images import BadImages
from mae_jax.distributed import sharding
from mae_jax.tools import cli
from mae_jax.utils import console, storage
from mae_jax.utils.errors import ConfigError


def check(
  checkpoint: str,
  images: str,
  batch_size: int = 1,
  pictures: str = "",
  fit: str | None = None,
) -> None:
  """Checks the flags that all these tools have, before anything is loaded.

  The folder `pictures` must lie apart from the images. Otherwise the next run
  would read the pictures as images, or the pictures would replace the images.

  Raises:
    ConfigError: if one cannot work.
  """
  cli.at_least("batch_size", batch_size)
  if fit is not None:
    check_name(prepare.FITS, fit, "--fit")
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


def title(checkpoint: str) -> tuple[str, str]:
  """Names a checkpoint in the heading of a picture.

  Returns:
    The checkpoint, with its newest step if it is a workdir: a run that
    continues may save another one. The name is "mine, step 400" for runs/mine,
    and "digits" for digits.
  """
  if formats.is_foreign(checkpoint):
    return checkpoint, os.path.basename(checkpoint.rstrip("/"))
  step = checkpoints.find_step(checkpoint)
  name = step.name
  if name.isdigit():
    name = f"{step.parent.parent.name}, step {name}"
  return str(step), name


def stream(
  apply: Callable[[Any, jax.Array], Any],
  params: Any,
  images: image_files.Images,
  data: DataConfig,
  *,
  mesh: Mesh,
  batch_size: int,
) -> Iterator[tuple[Any, np.ndarray]]:
  """Applies a network once to each image, prepared as in evaluation.

  Args:
    apply: jitted, from parameters and images [B, H, W, C] to a tree of
      [B, ...].
    params: its first argument.
    images: the images; warnings name those that cannot be read.
    data: how images are prepared.
    mesh: the devices.
    batch_size: images at a time, rounded up to a multiple of the devices.

  Yields:
    For the next n images, in order: the tree of [n, ...], and bool [n], False
    for images that cannot be read, whose values mean nothing.

  Raises:
    ConfigError: at the end, if no image could be read.
  """
  left = total = len(images.names)
  # A few images need no full batch.
  size = -(-min(batch_size, left) // mesh.size) * mesh.size
  batches = _batches(images, data, size, sharding.local_rows(mesh, size))
  any_readable = False
  with console.progress_bar(left) as bar, contextlib.closing(batches):
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
      f"no image can be read, of {total}: the warnings above say why; fix or "
      "replace them"
    )


def _batches(
  images: image_files.Images, data: DataConfig, size: int, rows: np.ndarray
) -> Generator[dict[str, np.ndarray]]:
  """Yields batches of `size`, of which this process has the given rows.

  Threads read two batches ahead. Unreadable images are black, as is padding.
  """
  total = len(images.names)
  dtype = image_headers.Reading.of(data).dtype
  black: np.ndarray = np.zeros((*data.image_size, data.channels), dtype)
  bad = BadImages()

  def load(index: int) -> tuple[np.ndarray, str]:
    if index >= total:
      return black, ""
    try:
      return prepare.fit(images.read(index), data), ""
    except image_headers.UnreadableError as error:
      return black, str(error)

  waiting: collections.deque[tuple[int, list[futures.Future]]] = (
    collections.deque()
  )

  def collect() -> dict[str, np.ndarray]:
    start, loading = waiting.popleft()
    pixels, reasons = zip(*(each.result() for each in loading), strict=True)
    for row, reason in zip(rows, reasons, strict=True):
      if reason:
        bad.report(images.names[start + row], reason)
    image_headers.print_notes()
    readable = np.array([not reason for reason in reasons])
    return {"image": np.stack(pixels), "readable": readable}

  pool = futures.ThreadPoolExecutor(os.cpu_count())
  try:
    for start in range(0, total, size):
      loading = [pool.submit(load, start + int(row)) for row in rows]
      waiting.append((start, loading))
      if len(waiting) > 2:
        yield collect()
    while waiting:
      yield collect()
  finally:
    # Without waiting: the garbage collector may close this stream anywhere.
    pool.shutdown(wait=False, cancel_futures=True)


def readable(number: int, total: int) -> str:
  """Describes how many of the images could be read, as part of a line."""
  if number == total:
    return count(number, 0)
  return f"{number} of {total} images ({total - number} cannot be read)"


def count(number: int, unreadable: int) -> str:
  """Describes a number of images, as part of a line."""
  text = f"{number} image{'' if number == 1 else 's'}"
  return f"{text} ({unreadable} cannot be read)" if unreadable else text
