"""Describes a file of weights as a table of text."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from etils import epath

from mae_jax.conversion import load, model_info, name_maps
from mae_jax.conversion.weights import POSITION_TABLES, Weights
from mae_jax.utils.errors import ConfigError

_UNKNOWN = "not in the file"
_NO_PIXELS = f"{_UNKNOWN}, or no pixels"
PARTS = {
  "encoder": "model/encoder/",
  "decoder": "model/decoder/",
}


def describe(
  path: epath.PathLike,
  local: pathlib.Path,
  weight_format: str | None,
  overrides: model_info.ModelOverrides,
) -> str:
  """Returns the table, even if the weights cannot be converted as they are.

  Arguments are as in `load.open_weights`.
  """
  weight_format, found = load.describe(path, local, weight_format, overrides)
  rows = [("file", str(path)), ("format", weight_format), *_info_rows(found)]
  problem = ""
  try:
    weights = load.open_weights(
      path, local, weight_format=weight_format, overrides=overrides
    )
  except ConfigError as error:
    problem = str(error)
  else:
    rows += _content_rows(weights)
  rows += [("missing", _missing(found))]
  questions = model_info.missing_info(found)
  rows += [("asked for", question) for question in questions]
  if problem and not questions:
    rows += [("problem", problem)]
  length = max(len(name) for name, _ in rows)
  return "\n".join(f"{name:{length}}  {value}" for name, value in rows)


def _info_rows(found: model_info.ModelInfo) -> Iterator[tuple[str, str]]:
  yield "kind", model_info.KINDS[found.kind]
  patch = "x".join(map(str, found.patch_size))
  if len(set(found.patch_size)) == 1:
    patch = str(found.patch_size[0])
  name = f"ViT-{found.size}/{patch}: " if found.size else ""
  yield (
    "architecture",
    (
      f"{name}{found.width} wide, {found.depth} blocks, "
      f"{found.heads or '?'} heads, MLP {found.mlp_dim}, patches of {patch}"
    ),
  )
  if found.decoder is not None:
    decoder = found.decoder
    yield (
      "decoder",
      (
        f"{decoder.width} wide, {decoder.depth} blocks, {decoder.heads or '?'} "
        f"heads, MLP {decoder.mlp_dim}"
      ),
    )
    target = {True: "normalized patches", False: "raw pixels", None: _NO_PIXELS}
    yield "target", target[found.norm_pix]
  else:
    yield "decoder", "none"
  images = f", {found.channels} channels"
  if found.image_size is None:
    yield "images", _UNKNOWN + images
  else:
    yield "images", "{} x {} pixels".format(*found.image_size) + images
  yield (
    "mean, std",
    (f"{found.mean}, {found.std}" if found.mean and found.std else _UNKNOWN),
  )
  if found.classes:
    unnamed = tuple(found.class_names) in (
      (),
      model_info.default_class_names(found.classes),
    )
    named = "without names" if unnamed else "named"
    pooling = {"mean": "mean of patch tokens", "cls": "class token"}
    yield (
      "head",
      (
        f"{found.classes} classes, {named}; on the "
        f"{pooling.get(found.pooling, found.pooling)}"
      ),
    )
  yield "LayerNorm eps", f"{found.norm_eps:g}"
  yield "activation", found.activation


def _content_rows(weights: Weights) -> Iterator[tuple[str, str]]:
  counts = {
    part: sum(
      name_maps.num_parameters({path: shape})
      for path, shape in weights.shapes.items()
      if path.startswith(prefix) and path not in POSITION_TABLES
    )
    for part, prefix in PARTS.items()
  }
  tables = sum(
    name_maps.num_parameters({path: weights.shapes[path]})
    for path in POSITION_TABLES
    if path in weights.shapes
  )
  counts["positions"] = tables
  counts["head"] = name_maps.num_parameters(weights.shapes) - sum(
    counts.values()
  )
  yield (
    "parameters",
    ", ".join(
      f"{part} {count / 1e6:.4g} M" for part, count in counts.items() if count
    ),
  )
  yield "stored as", str(weights.dtype)
  own = [
    part for path, part in POSITION_TABLES.items() if path in weights.shapes
  ]
  yield (
    "positions",
    (f"own table in {' and '.join(own)}" if own else "the sin-cos table"),
  )
  for note in weights.notes:
    yield "note", note


def _missing(found: model_info.ModelInfo) -> str:
  return {
    model_info.ENCODER: "decoder (for reconstruction or pre-training), head",
    model_info.MAE: "head (fine-tune or probe it first, to classify)",
    model_info.CLASSIFIER: "decoder",
    model_info.PROBE: "decoder",
  }[found.kind]
