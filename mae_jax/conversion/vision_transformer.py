"""Weights of google-research/vision_transformer and big_vision; read only."""

import pathlib

from mae_jax.conversion import facebook, model_info, tensor_files
from mae_jax.conversion.weight_format import WeightFormat
from mae_jax.utils.errors import ConfigError


class VisionTransformer(WeightFormat):
  """A `.npz` or msgpack file, whose tensors `flax_files` names as timm's."""

  names = facebook.NAMES
  unsupported = facebook.UNSUPPORTED
  decoder = False
  writable = False

  def matches(self, path: pathlib.Path, found: tensor_files.Tensors) -> bool:
    """Checks for a file of Flax."""
    return "flax_heads" in found.extra

  def describe(
    self,
    found: tensor_files.Header,
    path: pathlib.Path,
    base: model_info.ModelInfo | None,
  ) -> model_info.ModelInfo:
    """Reads model info; see `WeightFormat.describe`."""
    if "flax_heads" not in found.extra:
      raise ConfigError(
        f"--from=vision_transformer: {path} is no .npz or msgpack file of "
        "Flax; leave --from out"
      )
    known = facebook.read_shapes(found, path)
    # Flax's gelu is the tanh approximation; pixels are in [-1, 1].
    pixels = {"mean": (0.5,), "std": (0.5,)}
    known |= {"heads": found.extra["flax_heads"], "activation": "gelu_tanh"}
    known["assumed"] = {"image_size", *pixels}
    return model_info.ModelInfo(**(known | pixels))

  def __str__(self) -> str:
    return "vision_transformer"
