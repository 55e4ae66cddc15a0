"""The interface of a weight format, which import and export use."""

import json
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from mae_jax.conversion import (
  model_info,
  name_maps,
  run_config,
  tensor_files,
)
from mae_jax.conversion.weights import Weights
from mae_jax.utils import atomic_write

OUT = "OUT"  # the path to write to, in messages
METADATA = "mae_jax"  # key of this project's metadata in exported files


class WeightFormat:
  """A format in which another program stores ViT weights.

  Attributes:
    names: tensor names by our modules, see `name_maps`.
    aliases: regular expressions of other names of the same tensors, with their
      replacements, to apply in this order.
    ignored: regular expressions of tensors without a counterpart here, and what
      they are.
    optional_biases: a regular expression of biases that may be missing and are
      then zero.
    suffix: ending of a file's name; "" for a directory.
    folder: whether names without the suffix stand for a directory.
    decoder: whether the format can hold decoders.
    batch_norm: whether the format can hold the BatchNorm of a probe.
    writable: whether files of the format can be written.
    unsupported: regular expressions of tensors of networks that this project
      does not have, and what they are.
  """

  names: name_maps.Names
  aliases: Sequence[tuple[str, str]] = (name_maps.WRAPPERS,)
  ignored: Sequence[tuple[str, str]] = ()
  optional_biases: str = ""
  suffix: str = ""
  folder: bool = False
  decoder: bool = True
  batch_norm: bool = False
  writable: bool = True
  unsupported: Sequence[tuple[str, str]] = ()

  def matches(self, path: pathlib.Path, found: tensor_files.Tensors) -> bool:
    """Checks whether a file or directory may be of this format.

    Of several formats that match, the first one in `formats.FORMATS` is used.

    Raises:
      ConfigError: if the tensors are of this format, but files are missing.
    """
    raise NotImplementedError

  def describe(
    self,
    found: tensor_files.Header,
    path: pathlib.Path,
    base: model_info.ModelInfo | None,
  ) -> model_info.ModelInfo:
    """Reads model info from files.

    Args:
      found: names, shapes and extra content of the files.
      path: the file or directory.
      base: model info from this project's metadata, if the files have any.
    """
    raise NotImplementedError

  def provenance(self, path: pathlib.Path) -> dict[str, str]:
    """Returns source and license that files state, as `hub.source`."""
    return {}

  def write(
    self, weights: Weights, out: str, dtype: np.dtype, card: str
  ) -> list[str]:
    """Writes weights as `dtype` to `out`, and returns notes.

    A folder gets `card`, the text of its README.md.
    """
    raise NotImplementedError

  def check(self, weights: Weights) -> None:
    """Raises ConfigError if the format cannot hold the network."""

  def reader_notes(self, found: model_info.ModelInfo, out: str) -> list[str]:
    """Lists settings that the reading program does not find in `out`."""
    return [*self.eps_notes(found), *self.activation_notes(found)]

  def eps_notes(self, found: model_info.ModelInfo) -> list[str]:
    """Notes an epsilon of LayerNorm that is not the usual one."""
    notes = []
    if found.norm_eps != 1e-6:
      notes.append(
        f"LayerNorm's eps is {found.norm_eps:g}, which {self} does not read "
        "from the file: pass norm_layer=partial(nn.LayerNorm, "
        f"eps={found.norm_eps:g})"
      )
    return notes

  def activation_notes(self, found: model_info.ModelInfo) -> list[str]:
    """Notes an activation that is not the usual one."""
    notes = []
    if found.activation != "gelu":
      notes.append(
        f"the activation is {found.activation}, which {self} does not read "
        "from the file: pass act_layer"
      )
    return notes

  def __str__(self) -> str:
    return type(self).__name__.lower()

  def tensors(
    self, weights: Weights
  ) -> tuple[list[tuple[str, tuple[int, ...]]], Iterator[np.ndarray]]:
    """Returns names and shapes of all tensors, and lazily read values."""
    patch = (*weights.info.patch_size, weights.info.channels)
    pieces = name_maps.all_pieces(weights.shapes, self.names, patch)
    specs = [
      (x.name, x.foreign_shape) for part in pieces.values() for x in part
    ]

    def values() -> Iterator[np.ndarray]:
      for path, part in pieces.items():
        array = weights.read(path)
        for piece in part:
          yield piece.to_foreign(array)
        del array  # before the next one is read
      weights.finish()

    return specs, values()

  def write_safetensors(
    self, weights: Weights, out: str, dtype: np.dtype, prefix: str = ""
  ) -> None:
    """Writes a `.safetensors` file; names lose `prefix`."""
    specs, values = self.tensors(weights)
    specs = [(name.removeprefix(prefix), shape) for name, shape in specs]
    with atomic_write.atomic_file(out, OUT) as file:
      tensor_files.write_safetensors(
        file, specs, dtype, values, {"format": "pt"} | metadata(weights)
      )


def metadata(weights: Weights) -> dict[str, str]:
  """Returns this project's metadata for a file of weights."""
  return {METADATA: json.dumps(run_config.to_metadata(weights.run))}
