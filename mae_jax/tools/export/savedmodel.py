"""Writes and reads SavedModel: the program in TensorFlow, weights as variables.

Imported only for this format: TensorFlow takes seconds to load.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import jax2tf

from mae_jax.data.tf_setup import tf
from mae_jax.tools.export import quantize
from mae_jax.tools.export.stablehlo import PLATFORMS
from mae_jax.utils import jax_private, storage

SIGNATURE = "serving_default"
# The newest StableHLO that TensorFlow 2.21 reads; JAX 0.12 writes 1.18.
_TENSORFLOW_READS = "1.13.7"


def write(
  folder: epath.Path,
  call: Callable[..., jax.Array],
  weights: quantize.Weights,
  inputs: Mapping[str, jax.ShapeDtypeStruct],
  output: str,
) -> dict[str, Any]:
  """Writes a SavedModel; arguments and result as in `stablehlo.write`."""
  converted = jax2tf.convert(
    call,
    polymorphic_shapes=[None, *["(batch, ...)"] * len(inputs)],
    with_gradient=False,
    native_serialization_platforms=PLATFORMS,
  )
  module = tf.Module()
  with tf.device("CPU"):
    module.weights = {
      name: tf.Variable(np.asarray(value), trainable=False, name=name)
      for name, value in weights.items()
    }
  signature = [
    tf.TensorSpec([None, *each.shape], each.dtype, name=name)
    for name, each in inputs.items()
  ]

  @tf.function(input_signature=signature, autograph=False)
  def serve(*inputs: Any) -> dict[str, Any]:
    return {output: converted(dict(module.weights), *inputs)}

  module.serve = serve
  with (
    storage.os_errors(folder),
    jax_private.stablehlo_version(_TENSORFLOW_READS),
  ):
    tf.saved_model.save(
      module, str(folder), signatures={SIGNATURE: module.serve}
    )
  return {"platforms": list(PLATFORMS), "signature": SIGNATURE}


def load(folder: epath.Path) -> Callable[..., np.ndarray]:
  """Loads the exported function of its inputs."""
  module = tf.saved_model.load(str(folder))
  serve = module.signatures[SIGNATURE]
  # Images come first: no other input has a name before theirs.
  names = sorted(serve.structured_input_signature[1])

  def call(*inputs: np.ndarray) -> np.ndarray:
    assert module  # keeps the variables alive
    tensors = map(tf.constant, inputs)
    (value,) = serve(**dict(zip(names, tensors, strict=True))).values()
    return value.numpy()

  return call
