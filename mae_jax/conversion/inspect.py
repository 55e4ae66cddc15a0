"""What a file of weights is, as a table to read."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from etils import epath

from mae_jax.conversion import load, name_maps
from mae_jax.conversion import model_info as facts_lib
from mae_jax.conversion import weights as weights_lib
from mae_jax.utils.errors import ConfigError

_UNSAID = "not said by the file"
_NO_PIXELS = f"{_UNSAID}, or no pixels"
PARTS = {
  "encoder": "model/encoder/",
  "decoder": "model/decoder/",
}


def size(weights: weights_lib.Weights) -> int:
  """How many parameters there are."""
  return name_maps.size(weights.shapes)


def text(
  path: epath.PathLike,
  local: pathlib.Path,
  dialect: str | None,
  hints: facts_lib.ModelOverrides,
) -> str:
  """The table, whether or not the weights can be converted as they are.

  Args:
    path: see `reading.open_weights`.
    local: likewise.
    dialect: likewise.
    hints: likewise.

  Raises:
    ConfigError: if they are of no dialect.
  """
  dialect, found = load.describe(path, local, dialect, hints)
  rows = [("file", str(path)), ("dialect", dialect), *_rows(found)]
  problem = ""
  try:
    weights = load.open_weights(path, local, dialect=dialect, hints=hints)
  except ConfigError as error:
    problem = str(error)
  else:
    rows += _contents(weights)
  rows += [("missing", _missing(found))]
  rows += [("asked for", question) for question in _questions(found)]
  if problem and not _questions(found):
    rows += [("problem", problem)]
  length = max(len(name) for name, _ in rows)
  return "\n".join(f"{name:{length}}  {value}" for name, value in rows)


def _rows(found: facts_lib.ModelInfo) -> Iterator[tuple[str, str]]:
  yield "kind", facts_lib.KINDS[found.kind]
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
    yield "images", _UNSAID + images
  else:
    yield "images", "{} x {} pixels".format(*found.image_size) + images
  yield (
    "mean, std",
    (f"{found.mean}, {found.std}" if found.mean and found.std else _UNSAID),
  )
  if found.classes:
    unnamed = tuple(found.class_names) in ((), facts_lib.unnamed(found.classes))
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


def _contents(weights: weights_lib.Weights) -> Iterator[tuple[str, str]]:
  counts = {
    part: sum(
      name_maps.size({path: shape})
      for path, shape in weights.shapes.items()
      if path.startswith(prefix) and path not in weights_lib.TABLES
    )
    for part, prefix in PARTS.items()
  }
  tables = sum(
    name_maps.size({path: weights.shapes[path]})
    for path in weights_lib.TABLES
    if path in weights.shapes
  )
  counts["positions"] = tables
  counts["head"] = size(weights) - sum(counts.values())
  yield (
    "parameters",
    ", ".join(
      f"{part} {count / 1e6:.4g} M" for part, count in counts.items() if count
    ),
  )
  yield "stored as", str(weights.dtype)
  own = [
    part for path, part in weights_lib.TABLES.items() if path in weights.shapes
  ]
  yield (
    "positions",
    (f"own table in {' and '.join(own)}" if own else "the sin-cos table"),
  )
  for note in weights.notes:
    yield "note", note


def _missing(found: facts_lib.ModelInfo) -> str:
  return {
    facts_lib.ENCODER: "decoder (to reconstruct, or go on pre-training), head",
    facts_lib.MAE: "head (fine-tune or probe it first, to classify)",
    facts_lib.CLASSIFIER: "decoder",
    facts_lib.PROBE: "decoder",
  }[found.kind]


def _questions(found: facts_lib.ModelInfo) -> list[str]:
  return facts_lib.open_questions(found)
