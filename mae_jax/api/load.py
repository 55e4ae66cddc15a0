"""Loads networks of any format."""

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from jax.sharding import Mesh

from mae_jax.api import arguments, hints, library
from mae_jax.api.model import Model
from mae_jax.api.names import list_models
from mae_jax.config import MeshConfig, check_name
from mae_jax.conversion import formats, model_info
from mae_jax.conversion import load as conversion_load
from mae_jax.distributed import sharding
from mae_jax.evals import load_model
from mae_jax.utils.errors import ConfigError


def mesh_of(mesh: Mesh | None) -> Mesh:
  """Returns a mesh of this project, of another's devices or of all."""
  if mesh is None:
    return sharding.make_mesh(MeshConfig())
  if mesh.axis_names == sharding.AXES and not mesh.explicit_axes:
    return mesh
  # Programs name their axes as they like.
  return sharding.make_mesh(MeshConfig(), list(mesh.devices.flat))


def _check_source(path: str) -> None:
  """Explains names of networks that are no paths."""
  if os.path.exists(path) or path in formats.PACKAGED or "://" in path:
    return
  if path in list_models() or re.fullmatch(r"vit_[a-z]+_patch\d+\w*", path):
    raise ConfigError(
      f"source={path} names a network without weights, and no file: use "
      f'create_model("{path}") for random weights, or from_pretrained('
      '"hf://ORG/NAME") for those on the Hub'
    )
  if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path):
    raise ConfigError(
      f"source={path}: there is no such folder; of the Hugging Face Hub, use "
      f"hf://{path}"
    )
  close = difflib.get_close_matches(path, formats.PACKAGED, n=1)
  if close:
    raise ConfigError(
      f"source={path}: there is no such file or folder; did you mean "
      f"{close[0]!r}?"
    )


@library.explained(**hints.LOAD)
def from_pretrained(
  source: str | os.PathLike[str],
  *,
  mesh: Mesh | None = None,
  heads: int | None = None,
  decoder_heads: int | None = None,
  image_size: int | tuple[int, int] | None = None,
  target: str | None = None,
  mean: float | Sequence[float] | None = None,
  std: float | Sequence[float] | None = None,
  norm_eps: float | None = None,
  class_names: Sequence[str] | None = None,
  positions: str | None = None,
) -> Model:
  """Loads a network with its weights.

  The arguments from `heads` on say what a file of weights leaves open; the
  error of a missing one names it.

  Args:
    source: a workdir (its newest checkpoint), one of its checkpoints/STEP, a
      .pth of the reference, a .safetensors or folder of timm, a folder of
      transformers, any of these in a bucket (gs://...),
      "hf://organization/name" on the Hugging Face Hub, or "digits", a small
      network that comes with this package.
    mesh: the devices; None for all.
    heads: attention heads of the encoder.
    decoder_heads: attention heads of the decoder.
    image_size: height and width of its images, or one number for both.
    target: what the decoder predicts: "norm_pix" (normalized patches) or "raw".
    mean: of pixels in [0, 1], one for each channel, or one number for all.
    std: standard deviation of pixels, as `mean`.
    norm_eps: epsilon of LayerNorms.
    class_names: names of the classes, in the order of labels.
    positions: "keep", or "sincos" to replace them by the fixed table, for a
      table that is all zeros.

  Raises:
    ConfigError: if there are no weights, they are damaged, or something is not
      known.

  Example:
    >>> import mae_jax
    >>> mae_jax.from_pretrained("digits").kind
    'autoencoder'
  """
  given: dict[str, Any] = {
    "heads": heads,
    "decoder_heads": decoder_heads,
    "image_size": image_size,
    "target": target,
    "mean": _numbers("mean", mean),
    "std": _numbers("std", std),
    "norm_eps": norm_eps,
    "class_names": class_names,
    "positions": positions,
  }
  notes: list[str] = []
  with library.quiet(notes):
    path = arguments.path("source", source)
    if image_size is not None:
      given["image_size"] = arguments.size("image_size", image_size)
    _check_source(path)
    if target is not None:
      check_name(model_info.TARGETS, target, "target")
    if positions is not None:
      check_name(conversion_load.POSITIONS, positions, "positions")
    _check_needed(path, given)
    mesh = mesh_of(mesh)
    known = model_info.ModelOverrides(**given, insist=True)
    loaded = load_model.load(path, mesh, known, decoder=None)
  return Model(loaded, mesh, notes)


def _numbers(name: str, values: Any) -> tuple[float, ...] | None:
  if values is None:
    return None
  several = isinstance(values, Iterable)
  return arguments.per_channel(name, values if several else (values,))


def _check_needed(path: str, given: dict[str, Any]) -> None:
  """Refuses arguments for a checkpoint of this project, which says all."""
  named = [name for name, value in given.items() if value is not None]
  if named and not formats.is_foreign(path):
    conversion_load.locate(path)  # there may be no checkpoint
    raise ConfigError(
      f"{named[0]}={given[named[0]]!r} is for weights of other programs, and "
      f"{path} is a checkpoint that states it: leave it out"
    )
