"""Writes and reads ONNX: one graph with the weights as its constants."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime
from etils import epath

from mae_jax.tools.export import onnx_translation, quantize
from mae_jax.utils import storage

MODEL, WEIGHTS = "model.onnx", "model.onnx.data"
# Above it, weights are in a file of their own: a protocol buffer ends at 2 GiB.
MAX_BYTES = 1_900_000_000
_ERRORS_ONLY = 3  # of ONNX Runtime's log levels


def write(
  folder: epath.Path,
  call: Callable[..., jax.Array],
  weights: quantize.Weights,
  inputs: Mapping[str, jax.ShapeDtypeStruct],
  output: str,
) -> dict[str, Any]:
  """Writes the model; arguments and result as in `stablehlo.write`."""
  model = onnx_translation.build(call, weights, inputs, output)
  path = str(folder / MODEL)
  size = sum(each.nbytes for each in weights.values())
  with storage.os_errors(folder):
    onnx.save_model(
      model, path, save_as_external_data=size > MAX_BYTES, location=WEIGHTS
    )
    onnx.checker.check_model(path, full_check=True)
  return {"opset": onnx_translation.OPSET, "onnx": onnx.__version__}


def load(folder: epath.Path) -> Callable[..., np.ndarray]:
  """Loads the exported function of images, on the CPU."""
  onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
  session = onnxruntime.InferenceSession(
    str(folder / MODEL), providers=["CPUExecutionProvider"]
  )
  names = [each.name for each in session.get_inputs()]

  def call(*inputs: np.ndarray) -> np.ndarray:
    (out,) = session.run(None, dict(zip(names, inputs, strict=True)))
    return out

  return call
