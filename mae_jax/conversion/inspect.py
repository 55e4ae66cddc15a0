"""Describes a file of weights as a table of text."""

import math
import pathlib
from collections.abc import Iterator

from etils import epath

from mae_jax.conversion import load, model_info, provenance
from mae_jax.conversion.weights import POSITION_TABLES, Weights
from mae_jax.models import architecture
from mae_jax.utils.errors import ConfigError

_UNKNOWN = "not in the file"
_NO_PIXELS = f"{_UNKNOWN}, or no pixels"


def describe(
  path: epath.PathLike,
  local: pathlib.Path,
  weight_format: str | None,
  overrides: model_info.ModelOverrides,
) -> str:
  """Returns the table, even if the weights cannot be converted as they are.

  Arguments are as in `load.open_unchecked`.
  """
  opened = load.open_unchecked(
    path, local, weight_format=weight_format, overrides=overrides
  )
  found, problem = opened.info, ""
  rows = [("file", str(path)), ("format", opened.weight_format)]
  rows += _info_rows(found)
  try:
    weights = opened if isinstance(opened, Weights) else opened.weights()
    rows += _content_rows(weights)
  except ConfigError as error:
    problem = str(error)
  rows += [("missing", _missing(found))]
  questions = [] if isinstance(opened, Weights) else opened.missing_info()
  rows += [("asked for", question) for question in questions]
  if problem and not questions:
    rows += [("problem", problem)]
  length = max(len(name) for name, _ in rows)
  return "\n".join(f"{name:{length}}  {value}" for name, value in rows)


def _info_rows(found: model_info.ModelInfo) -> Iterator[tuple[str, str]]:
  yield "kind", model_info.KINDS[found.kind]
  height, width = found.patch_size
  patch = str(height) if height == width else f"{height}x{width}"
  name = f"ViT-{found.size}/{patch}: " if found.size else ""
  yield "architecture", f"{name}{_stack(found)}, patches of {patch}"
  if found.decoder is not None:
    yield "decoder", _stack(found.decoder)
    target = {True: "normalized patches", False: "raw pixels", None: _NO_PIXELS}
    yield "target", target[found.norm_pix]
  else:
    yield "decoder", "none"
  size = found.image_size
  pixels = "{} x {} pixels".format(*size) if size else _UNKNOWN
  yield "images", f"{pixels}, {found.channels} channels"
  known = found.mean and found.std
  yield "mean, std", f"{found.mean}, {found.std}" if known else _UNKNOWN
  how = f"{found.eval_resample}, "
  if found.eval_fit == "crop":
    how += f"cropped to {found.eval_crop:.3g} of the sides"
  else:
    how += "resized without a crop"
  yield "evaluation", how
  if found.classes:
    default = model_info.default_class_names(found.classes)
    unnamed = tuple(found.class_names) in ((), default)
    named = "without names" if unnamed else "named"
    words = {"mean": "mean of patch tokens", "cls": "class token"}
    pooling = words.get(found.pooling, found.pooling)
    yield "head", f"{found.classes} classes, {named}; on the {pooling}"
  yield "LayerNorm eps", f"{found.norm_eps:g}"
  yield "activation", found.activation


def _stack(dims: model_info.ModelInfo | architecture.Dims) -> str:
  return (
    f"{dims.width} wide, {dims.depth} blocks, {dims.heads or '?'} heads, MLP "
    f"{dims.mlp_dim}"
  )


def _content_rows(weights: Weights) -> Iterator[tuple[str, str]]:
  counts = dict.fromkeys(("encoder", "decoder", "positions", "head"), 0)
  for path, shape in weights.shapes.items():
    part = path.removeprefix("model/").partition("/")[0]
    part = part if part in ("encoder", "decoder") else "head"
    part = "positions" if path in POSITION_TABLES else part
    counts[part] += math.prod(shape)
  sizes = [f"{part} {n / 1e6:.4g} M" for part, n in counts.items() if n]
  yield "parameters", ", ".join(sizes)
  yield "stored as", str(weights.dtype)
  own = [
    part for path, part in POSITION_TABLES.items() if path in weights.shapes
  ]
  table = f"own table in {' and '.join(own)}" if own else "the sin-cos table"
  yield "positions", table
  for key, value in provenance.trace(weights.run).items():
    yield key, value or _UNKNOWN
  for note in weights.notes:
    yield "note", note


def _missing(found: model_info.ModelInfo) -> str:
  return {
    model_info.ENCODER: "decoder (for reconstruction or pre-training), head",
    model_info.MAE: "head (fine-tune or probe it first, to classify)",
    model_info.CLASSIFIER: "decoder",
    model_info.PROBE: "decoder",
  }[found.kind]
