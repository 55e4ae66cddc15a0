"""Reads other programs' weights and checks them against the expected network.

Nothing is dropped silently. A tensor that is missing, unexpected, of the wrong
shape or not finite raises an error; every correction adds a note.
"""

import dataclasses
import json
import math
import operator
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mae_jax import checkpoints
from mae_jax.conversion import (
  facebook,
  formats,
  model_card,
  model_info,
  name_maps,
  run_config,
  tensor_files,
  weight_format,
)
from mae_jax.conversion.weights import (
  NOT_NEEDED,
  POSITION_TABLES,
  Weights,
  sincos_table,
)
from mae_jax.utils.errors import ConfigError

_MAX_NAMES = 4  # names in an error
_ENCODER_TABLE = "model/encoder/pos_embed"


# Of torch.optim.swa_utils.AveragedModel.
_COUNTERS = ((r"^n_averaged$", "the counter of averaged models"),)


class ForeignCheckpoint:
  """The tensors of another program's file, and the network they belong to."""

  def __init__(
    self,
    path: pathlib.Path,
    found: tensor_files.Tensors,
    format_name: str,
    overrides: model_info.ModelOverrides,
    source: Mapping[str, str] | None = None,
  ):
    self._path, self._tensors = path, found
    self._source = source or facebook.published(path.name)
    self.weight_format, self._overrides = format_name, overrides
    self._format = formats.FORMATS[format_name]
    self._stored_names = {
      _canonical_name(name, self._format.aliases): name for name in found.shapes
    }
    if len(self._stored_names) < len(found.shapes):
      raise ConfigError(
        f"{path} has the same tensors under two names known to "
        f"{format_name}: save them under one"
      )
    self._shapes = {
      canonical: found.shapes[name]
      for canonical, name in self._stored_names.items()
    }
    _check_sizes(path, found)
    self._check_supported()
    self._base = _own_metadata(path, found)
    header = tensor_files.Header(self._shapes, found.extra)
    base = None
    if self._base is not None:
      kind = model_info.KIND_OF_TASK[self._base.config.task]
      base = run_config.from_run(self._base, kind)
    info = self._format.describe(header, path, base)
    self._notes = [*found.notes, *_unused_networks(found), *info.notes]
    if info.decoder is None:
      info = dataclasses.replace(info, norm_pix=None)
    self.info = model_info.with_overrides(info, overrides)
    self._no_class_row = self._pad_positions()

  def _check_supported(self) -> None:
    """Refuses a network that this project does not have, by what it has."""
    for pattern, what in self._format.unsupported:
      for name in self._shapes:
        if re.search(pattern, name):
          raise ConfigError(
            f"{self._path} has {what} ({name}), which the networks of this "
            "project do not have: use weights of a plain ViT"
          )

  def _pad_positions(self) -> str:
    """Adds a class row to a table without one; returns the table's name."""
    name, size = str(self._format.names[_ENCODER_TABLE]), self.info.image_size
    shape = self._shapes.get(name, ())
    if size is None or len(shape) != 3:
      return ""
    patch = self.info.patch_size
    length = math.prod(map(operator.floordiv, size, patch))
    if shape[1] != length:
      return ""
    self._shapes[name] = (1, 1 + length, shape[2])
    self._notes.append(f"{name} has no class token, which gets zeros")
    return name

  def _tensor(self, read: tensor_files.Read, canonical: str) -> np.ndarray:
    values = read(self._stored_names[canonical])
    if canonical == self._no_class_row:
      values = np.concatenate([np.zeros_like(values[:, :1]), values], axis=1)
    return values

  def weights(self) -> Weights:
    """Returns checked weights; values are checked only when they are read."""
    info = self.info
    run = run_config.to_run(info, str(self._path), self._base)
    shapes = run_config.shapes(run, info.kind)
    patch = (*info.patch_size, info.channels)
    pieces = name_maps.all_pieces(shapes, self._format.names, patch)
    dtype = self._dtype()
    zeros = self._check_names(pieces)
    shapes = shapes | self._positions(pieces, patch, dtype)
    origin = {
      **self._provenance(),
      "dialect": self.weight_format,
      "file": self._path.name,
      "dtype": next(k for k, v in tensor_files.FLOATS.items() if v == dtype),
    }

    def read(path: str) -> np.ndarray:
      return self._read(path, shapes[path], pieces[path], zeros, dtype)

    return Weights(
      what=str(self._path),
      weight_format=self.weight_format,
      info=info,
      run=dataclasses.replace(run, origin=origin),
      dtype=dtype,
      shapes=shapes,
      read=read,
      notes=tuple(self._notes),
    )

  def _provenance(self) -> dict[str, str]:
    """Returns source and license; a format's files may know the license."""
    known = {**run_config.provenance(self._base), **self._source}
    stated = self._format.provenance(self._path)
    if (
      stated and known.get("license", model_card.UNKNOWN) == model_card.UNKNOWN
    ):
      known = {**stated, **known, "license": stated["license"]}
    return known

  def _dtype(self) -> np.dtype:
    """Returns the narrowest dtype that holds all stored tensors."""
    stored = {
      self._tensors.dtypes[original]
      for canonical, original in self._stored_names.items()
      if not self._reason_to_ignore(canonical)
    }
    if unknown := stored - tensor_files.FLOATS.keys():
      raise ConfigError(
        f"{self._path} has tensors of type {', '.join(sorted(unknown))}; "
        f"supported are {', '.join(tensor_files.FLOATS)}: use weights that are "
        "neither quantized nor sparse"
      )
    if "F64" in stored:
      self._notes.append("float64 is rounded to float32")
    if len(stored) == 1 and stored != {"F64"}:
      return tensor_files.FLOATS[stored.pop()]
    return np.dtype(np.float32)

  def _reason_to_ignore(self, canonical: str) -> str | None:
    for pattern, what in (*self._format.ignored, *_COUNTERS):
      if re.search(pattern, canonical):
        return what
    overrides = self._overrides
    if self.info.kind == model_info.ENCODER and (
      overrides.encoder_only or overrides.no_decoder
    ):
      return self._reason_outside_encoder(canonical)
    return None

  def _reason_outside_encoder(self, canonical: str) -> str | None:
    theirs = self._format.names
    for path, name in theirs.items():
      if path.startswith("model/encoder/"):
        continue
      first = name if isinstance(name, str) else name[0]
      if canonical.startswith(first.partition("{layer}")[0].rstrip(".")):
        return "tensors outside the encoder"
    return None

  def _check_names(
    self, pieces: Mapping[str, list[name_maps.Piece]]
  ) -> set[str]:
    """Checks names and shapes; returns the names of biases to set to zero."""
    wanted = {each.name: each for part in pieces.values() for each in part}
    tables = {
      str(self._format.names[path]) for path in POSITION_TABLES
    } - wanted.keys()
    ignored: dict[str, int] = {}
    problems = []
    for canonical in self._shapes:
      if canonical in wanted or canonical in tables:
        continue
      if what := self._reason_to_ignore(canonical):
        ignored[what] = ignored.get(what, 0) + 1
      else:
        problems.append(f"{self._stored_names[canonical]} is unexpected")
    zeros = set()
    for name, piece in wanted.items():
      if name not in self._shapes:
        if self._format.optional_biases and re.search(
          self._format.optional_biases, name
        ):
          zeros.add(name)
        else:
          problems.append(f"{name} is missing")
      elif self._shapes[name] != piece.foreign_shape:
        problems.append(
          f"{name} is {self._shapes[name]}, not {piece.foreign_shape}"
        )
    if problems:
      shown = "; ".join(problems[:_MAX_NAMES])
      more = len(problems) - _MAX_NAMES
      raise ConfigError(
        f"{self._path} does not match the format {self.weight_format} "
        f"({model_info.KINDS[self.info.kind]}): {shown}"
        + (f"; and {more} more" if more > 0 else "")
        + ". Check that the file is complete and holds a plain ViT"
      )
    self._notes += [
      f"{NOT_NEEDED}{what} ({count} tensors)" for what, count in ignored.items()
    ]
    if zeros:
      self._notes.append(
        f"{len(zeros)} missing biases of queries, keys and values are set to "
        "zero"
      )
    return zeros

  def _positions(
    self,
    pieces: dict[str, list[name_maps.Piece]],
    patch: tuple[int, int, int],
    dtype: np.dtype,
  ) -> dict[str, tuple[int, ...]]:
    """Compares position tables with sin-cos; adds others to `pieces`.

    Returns:
      The shapes of the tables to keep.
    """
    kept_tables = {}
    if self._overrides.positions == "sincos":
      model_info.check_fixed_positions(self.info, str(self._path))
    for path, part in POSITION_TABLES.items():
      name = str(self._format.names[path])
      if part == "decoder" and self.info.decoder is None:
        continue
      ours = sincos_table(self.info, part)
      trained = path in pieces
      if not trained:
        if name not in self._shapes:
          if self._overrides.positions == "sincos":
            continue
          raise ConfigError(
            f"{self._path}: {name} is missing: convert with --positions=sincos "
            "if it is the reference's table (python -m mae_jax convert)"
          )
        if self._shapes[name] != ours.shape:
          raise ConfigError(
            f"{self._path}: {name} is {self._shapes[name]}, but images of "
            f"{self.info.image_size} need positions {ours.shape}: give the "
            "image size with --image_size"
          )
        pieces[path] = name_maps.pieces(
          path, ours.shape, self._format.names, patch
        )
      theirs = self._read(path, ours.shape, pieces[path], set(), dtype)
      if question := self._zeros_question(name, theirs):
        raise ConfigError(
          f"{self._path}: {question} (python -m mae_jax convert)"
        )
      if trained:
        continue
      if self._keep_table(part, name, ours.astype(dtype), theirs):
        kept_tables[path] = ours.shape
      else:
        del pieces[path]
    return kept_tables

  def missing_info(self) -> list[str]:
    """Lists the facts that the files lack, each with its flag."""
    questions = model_info.missing_info(self.info)
    for path, part in POSITION_TABLES.items():
      name = str(self._format.names[path])
      if name in self._shapes and (
        part == "encoder" or self.info.decoder is not None
      ):
        with self._tensors.reading() as read:
          question = self._zeros_question(name, self._tensor(read, name))
        questions += [question] if question else []
    return questions

  def _zeros_question(self, name: str, table: np.ndarray) -> str:
    """Returns the question that a table of zeros raises; "" for others."""
    if table.any() or self._overrides.positions is not None:
      return ""
    return (
      f"{name} is all zeros, as in networks that transformers 5 creates "
      "without loading a file: convert with --positions=keep if the network "
      "was trained with zeros"
      + (
        ", or --positions=sincos for the reference's table"
        if model_info.has_fixed_positions(self.info)
        else "; otherwise train it again with positions that are not zero"
      )
    )

  def _keep_table(
    self, part: str, name: str, ours: np.ndarray, theirs: np.ndarray
  ) -> bool:
    if ours.tobytes() == theirs.tobytes():
      return False
    if self._overrides.positions == "sincos":
      self._notes.append(
        f"the positions of the {part} ({name}) are replaced by the sin-cos "
        "table"
      )
      return False
    if self._overrides.fixed_positions:
      return True
    difference = np.abs(
      ours.astype(np.float32) - theirs.astype(np.float32)
    ).max()
    self._notes.append(
      f"the positions of the {part} ({name}) differ from the sin-cos table by "
      f"up to {difference:.2g}: they are kept"
    )
    return True

  def _read(
    self,
    path: str,
    shape: tuple[int, ...],
    pieces: list[name_maps.Piece],
    zeros: set[str],
    dtype: np.dtype,
  ) -> np.ndarray:
    array = np.zeros(shape, dtype) if zeros else np.empty(shape, dtype)
    with self._tensors.reading() as read:
      for piece in pieces:
        if piece.name in zeros:
          continue
        theirs = self._tensor(read, piece.name)
        _check_finite(theirs, piece.name, self._path)
        piece.from_foreign(array, theirs)
    return array


def _canonical_name(name: str, aliases: Any) -> str:
  for pattern, replacement in aliases:
    name = re.sub(pattern, replacement, name)
  return name


def _check_sizes(path: pathlib.Path, found: tensor_files.Tensors) -> None:
  for name, shape in found.shapes.items():
    if 0 in shape or name.rpartition(".")[2] == "_flat_param":
      raise ConfigError(
        f"{path}: {name} has shape {shape} and thus no values, or those of one "
        "process: gather the weights first (FSDP's FULL_STATE_DICT, "
        "DeepSpeed's zero_to_fp32.py), or save them without it"
      )


def _unused_networks(found: tensor_files.Tensors) -> list[str]:
  """Returns a note for each further set of these tensors, such as averages."""
  names = {found.prefix + name for name in found.shapes}
  return [
    f"left out: {key!r}, other values of {len(names & value.keys())} of "
    "these tensors; to convert them instead, save them as {'model': ...}"
    for key, value in found.extra.items()
    if isinstance(value, Mapping) and names & value.keys()
  ]


def _check_finite(array: np.ndarray, name: str, path: pathlib.Path) -> None:
  with np.errstate(over="ignore"):
    finite = np.isfinite(array.astype(np.float32, copy=False))
  if not finite.all():
    raise ConfigError(
      f"{path}: {name} has {int((~finite).sum())} values of {array.size} that "
      "are NaN or infinite, as after a run that diverged: use the weights of "
      "an earlier step"
    )


def _own_metadata(
  path: pathlib.Path, found: tensor_files.Tensors
) -> checkpoints.CheckpointMetadata | None:
  text = found.extra.get(weight_format.METADATA)
  if not isinstance(text, str):
    return None
  try:
    run = run_config.from_metadata(json.loads(text))
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise ConfigError(
      f"{path} was written by another version of mae_jax, whose metadata "
      f"cannot be read ({error}): convert the original checkpoint again"
    ) from error
  run_config.check_single_network(path, run)
  return run
