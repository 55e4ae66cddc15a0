"""StableHLO: a program for `jax.export`, and its weights beside it.

The weights are an argument of the program, not constants in it: there is no
limit to their size, and they are read without a copy of them in a graph.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.export
import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors import numpy as safetensors

from mae_jax.tools.export import quantize as weights_lib

PROGRAM, WEIGHTS = "program.bin", "weights.safetensors"
# As `jax.export` calls them. All are lowered to here, whatever is at hand.
PLATFORMS = ("cpu", "cuda", "tpu")


def write(
  folder: epath.Path,
  call: Callable[[Any, jax.Array], jax.Array],
  weights: weights_lib.Weights,
  image_shape: tuple[int, ...],
  output: str,
) -> dict[str, Any]:
  """Writes them.

  Args:
    folder: where to.
    call: from weights and uint8 images [B, ...] to [B, ...].
    weights: its first argument.
    image_shape: of one image.
    output: has no part in a program, whose only value it would name.

  Returns:
    What a reader may want to know of them.

  Raises:
    OSError: with a path, if they cannot be written.
  """
  del output
  (batch,) = jax.export.symbolic_shape("batch")
  program = jax.export.export(jax.jit(call), platforms=PLATFORMS)(
    {
      name: jax.ShapeDtypeStruct(value.shape, value.dtype)
      for name, value in weights.items()
    },
    jax.ShapeDtypeStruct((batch, *image_shape), np.uint8),
  )
  (folder / PROGRAM).write_bytes(program.serialize())
  with _os_errors(folder / WEIGHTS):
    safetensors.save_file(
      # It writes memory as it lies there.
      {name: np.ascontiguousarray(value) for name, value in weights.items()},
      folder / WEIGHTS,
    )
    # It makes a file that nobody else may read.
    shutil.copymode(folder / PROGRAM, folder / WEIGHTS)
  return {
    "platforms": list(program.platforms),
    "calling_convention_version": program.calling_convention_version,
  }


def load(folder: epath.Path) -> Callable[[np.ndarray], np.ndarray]:
  """The function of images that was written."""
  program = jax.export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
  device = jax.local_devices(backend="cpu")[0]
  with safe_open(folder / WEIGHTS, "np", backend="pread") as file:
    # One by one: the whole is held once.
    weights = {
      name: jax.device_put(file.get_tensor(name), device)
      for name in file.offset_keys()
    }
  serve = jax.jit(program.call)
  return lambda images: np.asarray(
    serve(weights, jax.device_put(images, device))
  )


@contextlib.contextmanager
def _os_errors(path: epath.Path) -> Iterator[None]:
  """Makes of what safetensors raises what the system did."""
  try:
    yield
  except SafetensorError as error:
    raise OSError(errno.EIO, str(error), os.fspath(path)) from error
