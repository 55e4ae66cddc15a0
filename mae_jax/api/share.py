"""Saves networks for other programs, and shares them on the Hub."""

import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

from PIL import Image

from mae_jax.api import arguments
from mae_jax.config import check_name
from mae_jax.conversion import export_weights, formats, hub, load, model_card
from mae_jax.conversion.weights import Weights
from mae_jax.evals import load_model
from mae_jax.models import classifiers

_PICTURE = "picture.png"


def weights_of(found: load_model.LoadedModel, params: Any) -> Weights:
  """Returns a network's weights for conversion."""
  return load.weights_of(params, found.metadata, str(found.path))


def save(
  weights: Weights,
  path: str | os.PathLike[str],
  weight_format: str,
  dtype: str | None,
) -> tuple[str, ...]:
  """Writes weights; see `Model.save_pretrained`."""
  check_name(formats.FORMAT_NAMES, weight_format, "format")
  if dtype is not None:
    check_name(export_weights.DTYPES, dtype, "dtype")
  out = arguments.path("path", path)
  return export_weights.write(weights, weight_format, out, dtype)


def default_format(found: load_model.LoadedModel) -> str:
  """Returns the library that can hold a network: timm for mean pooling."""
  mean = found.metadata.config.classify.pooling == "mean"
  is_classifier = found.metadata.config.task in classifiers.CLASSIFIERS
  return "timm" if is_classifier and mean else "transformers"


def push(
  weights: Weights,
  repo_id: str,
  weight_format: str,
  *,
  license: str | None,
  results: Mapping[str, float] | None,
  picture: Image.Image | None,
  private: bool | None,
  token: str | None,
  commit_message: str | None,
) -> str:
  """Writes weights with a card, and uploads them; see `Model.push_to_hub`."""
  check_name(model_card.LIBRARIES, weight_format, "format")
  card = export_weights.make_card(
    weights,
    weight_format,
    repo_id=repo_id,
    license=license,
    results=results,
    picture="" if picture is None else _PICTURE,
  )
  model_card.check_license(card.origin, license)
  with tempfile.TemporaryDirectory() as directory:
    folder = pathlib.Path(directory) / "weights"
    export_weights.write(weights, weight_format, str(folder), card=card)
    if picture is not None:
      picture.save(folder / _PICTURE)
    return hub.push(
      folder,
      repo_id,
      private=private,
      token=token,
      commit_message=commit_message,
    )
