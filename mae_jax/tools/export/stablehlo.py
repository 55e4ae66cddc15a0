"""Writes and reads StableHLO: a `jax.export` program and its weights.

The weights are arguments of the program rather than constants: their size has
no limit, and they are loaded without a second copy in the program.
"""

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.export
import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors import numpy as safetensors

from mae_jax.tools.export import quantize

PROGRAM, WEIGHTS = "program.bin", "weights.safetensors"
# Names of `jax.export`. The program is lowered for all of them everywhere.
PLATFORMS = ("cpu", "cuda", "tpu")


def write(
  folder: epath.Path,
  call: Callable[..., jax.Array],
  weights: quantize.Weights,
  inputs: Mapping[str, jax.ShapeDtypeStruct],
  output: str,
) -> dict[str, Any]:
  """Writes program and weights.

  Args:
    folder: the output folder.
    call: maps weights and inputs [B, ...] to [B, ...].
    weights: the first argument of `call`.
    inputs: shape and dtype of one example of each further argument, by name.
    output: name of the output, in formats that have one.

  Returns:
    Entries for `export.json`.

  Raises:
    OSError: with a path, if a file cannot be written.
  """
  del output
  (batch,) = jax.export.symbolic_shape("batch")
  program = jax.export.export(jax.jit(call), platforms=PLATFORMS)(
    {
      name: jax.ShapeDtypeStruct(value.shape, value.dtype)
      for name, value in weights.items()
    },
    *(
      jax.ShapeDtypeStruct((batch, *each.shape), each.dtype)
      for each in inputs.values()
    ),
  )
  (folder / PROGRAM).write_bytes(program.serialize())
  try:
    safetensors.save_file(
      # safetensors writes the memory of an array in its order.
      {name: np.ascontiguousarray(value) for name, value in weights.items()},
      folder / WEIGHTS,
    )
    # safetensors makes a file that only its owner can read.
    shutil.copymode(folder / PROGRAM, folder / WEIGHTS)
  except SafetensorError as error:
    path = os.fspath(folder / WEIGHTS)
    raise OSError(errno.EIO, str(error), path) from error
  return {
    "platforms": list(program.platforms),
    "calling_convention_version": program.calling_convention_version,
  }


def load(folder: epath.Path) -> Callable[..., np.ndarray]:
  """Loads the exported function of its inputs."""
  program = jax.export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
  device = jax.local_devices(backend="cpu")[0]
  with safe_open(folder / WEIGHTS, "np", backend="pread") as file:
    # One array at a time: memory holds the weights once.
    weights = {
      name: jax.device_put(file.get_tensor(name), device)
      for name in file.offset_keys()
    }
  serve = jax.jit(program.call)
  return lambda *inputs: np.asarray(
    serve(weights, *jax.device_put(inputs, device))
  )
