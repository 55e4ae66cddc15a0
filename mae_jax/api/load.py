"""Loads networks of any format."""

import os
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from mae_jax.api import library
from mae_jax.api.model import Model
from mae_jax.config import MeshConfig, check_name
from mae_jax.conversion import formats, model_info
from mae_jax.distributed import sharding
from mae_jax.evals import load_model
from mae_jax.utils.errors import ConfigError


def default_mesh() -> Mesh:
  """Returns a mesh of all devices."""
  return sharding.make_mesh(MeshConfig())


def from_pretrained(
  source: str | os.PathLike[str],
  *,
  mesh: Mesh | None = None,
  heads: int | None = None,
  decoder_heads: int | None = None,
  image_size: tuple[int, int] | None = None,
  target: str | None = None,
  mean: Sequence[float] | None = None,
  std: Sequence[float] | None = None,
  norm_eps: float | None = None,
  class_names: Sequence[str] | None = None,
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
    image_size: height and width of its images.
    target: what the decoder predicts: "norm_pix" (normalized patches) or "raw".
    mean: of pixels in [0, 1], one for each channel.
    std: standard deviation of pixels, one for each channel.
    norm_eps: epsilon of LayerNorms.
    class_names: names of the classes, in the order of labels.

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
    "mean": None if mean is None else tuple(mean),
    "std": None if std is None else tuple(std),
    "norm_eps": norm_eps,
    "class_names": class_names,
  }
  path = os.path.expanduser(os.fspath(source))
  notes: list[str] = []
  with library.quiet(notes):
    if target is not None:
      check_name(model_info.TARGETS, target, "target")
    _check_needed(path, given)
    mesh = mesh or default_mesh()
    known = model_info.ModelOverrides(**given, insist=True)
    loaded = load_model.load(path, mesh, known, decoder=None)
  return Model(loaded, mesh, notes)


def _check_needed(path: str, given: dict[str, Any]) -> None:
  """Refuses arguments for a checkpoint of this project, which says all."""
  named = [name for name, value in given.items() if value is not None]
  if named and not formats.is_foreign(path):
    raise ConfigError(
      f"{named[0]}={given[named[0]]!r} is for weights of other programs, and "
      f"{path} is a checkpoint that states it: leave it out"
    )
