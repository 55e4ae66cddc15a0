"""Weights of others, compared with the network that they say they are.

Nothing is dropped silently: a tensor that is missing, left over, of another
shape or not finite is an error, and what is corrected is a note.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mae_jax import checkpoints
from mae_jax.conversion import formats, run_config, tensor_files
from mae_jax.conversion import model_info as facts_lib
from mae_jax.conversion import name_maps as names_lib
from mae_jax.conversion import weights as weights_lib
from mae_jax.utils.errors import ConfigError

METADATA = "mae_jax"  # the key of what only we say
_SHOWN = 4  # names in an error


class ForeignCheckpoint:
  """Tensors under their usual names, and what they are."""

  def __init__(
    self,
    path: pathlib.Path,
    found: tensor_files.Tensors,
    dialect: str,
    hints: facts_lib.ModelOverrides,
  ):
    self._path, self._tensors = path, found
    self._name, self._hints = dialect, hints
    self._dialect = formats.FORMATS[dialect]
    self._original = {
      _usual(name, self._dialect.spellings): name for name in found.shapes
    }
    if len(self._original) < len(found.shapes):
      raise ConfigError(
        f"{path} has the same tensors under two spellings of {dialect}: save "
        "them under one"
      )
    self._shapes = {
      usual: found.shapes[name] for usual, name in self._original.items()
    }
    _check_sizes(path, found)
    self._base = _own_metadata(path, found)
    self._notes = _others(found)
    header = tensor_files.Header(self._shapes, found.extra)
    base = None
    if self._base is not None:
      kind = next(
        kind
        for kind, task in facts_lib.TASKS.items()
        if task == self._base.config.task and kind != facts_lib.ENCODER
      )
      base = run_config.from_run(self._base, kind)
    facts = self._dialect.describe(header, path, base)
    if facts.decoder is None:
      facts = dataclasses.replace(facts, norm_pix=None)
    self.facts = facts_lib.with_overrides(facts, hints)

  def weights(self) -> weights_lib.Weights:
    """Checked, but for what is only seen when they are read."""
    facts = self.facts
    run = run_config.to_run(facts, str(self._path), self._base)
    shapes = run_config.shapes(run, facts.kind)
    patch = (*facts.patch_size, facts.channels)
    pieces = dict(names_lib.all_pieces(shapes, self._dialect.names, patch))
    dtype = self._dtype()
    zeros = self._check_names(pieces)
    shapes = shapes | self._positions(pieces, patch, dtype)
    origin = {
      "dialect": self._name,
      "file": self._path.name,
      "dtype": next(k for k, v in tensor_files.FLOATS.items() if v == dtype),
    }

    def read(path: str) -> np.ndarray:
      return self._read(path, shapes[path], pieces[path], zeros, dtype)

    return weights_lib.Weights(
      what=str(self._path),
      dialect=self._name,
      facts=facts,
      run=dataclasses.replace(run, origin=origin),
      dtype=dtype,
      shapes=shapes,
      read=read,
      notes=tuple(self._notes),
    )

  def _dtype(self) -> np.dtype:
    """The narrowest type that holds all that is stored."""
    stored = {
      self._tensors.dtypes[original]
      for usual, original in self._original.items()
      if not self._is_left_out(usual)
    }
    if unknown := stored - tensor_files.FLOATS.keys():
      raise ConfigError(
        f"{self._path} has tensors of type {', '.join(sorted(unknown))}; known "
        f"are {', '.join(tensor_files.FLOATS)}: convert weights that are "
        "neither quantized nor sparse"
      )
    if "F64" in stored:
      self._notes.append("float64 is rounded to float32")
    if len(stored) == 1 and stored != {"F64"}:
      return tensor_files.FLOATS[stored.pop()]
    return np.dtype(np.float32)

  def _is_left_out(self, usual: str) -> str | None:
    for pattern, what in self._dialect.left_out:
      if re.search(pattern, usual):
        return what
    hints = self._hints
    if self.facts.kind == facts_lib.ENCODER and (
      hints.encoder_only or hints.no_decoder
    ):
      return self._is_beside_encoder(usual)
    return None

  def _is_beside_encoder(self, usual: str) -> str | None:
    theirs = self._dialect.names
    for path, name in theirs.items():
      if path.startswith("model/encoder/"):
        continue
      first = name if isinstance(name, str) else name[0]
      if usual.startswith(first.partition("{layer}")[0].rstrip(".")):
        return "what is not of the encoder"
    return None

  def _check_names(
    self, pieces: Mapping[str, list[names_lib.Piece]]
  ) -> set[str]:
    """Compares names and shapes; returns what is missing and zero."""
    wanted = {each.name: each for part in pieces.values() for each in part}
    tables = {
      str(self._dialect.names[path]) for path in weights_lib.TABLES
    } - wanted.keys()
    left_out: dict[str, int] = {}
    problems = []
    for usual in self._shapes:
      if usual in wanted or usual in tables:
        continue
      if what := self._is_left_out(usual):
        left_out[what] = left_out.get(what, 0) + 1
      else:
        problems.append(f"{self._original[usual]} is left over")
    zeros = set()
    for name, piece in wanted.items():
      if name not in self._shapes:
        if self._dialect.no_bias and re.search(self._dialect.no_bias, name):
          zeros.add(name)
        else:
          problems.append(f"{name} is missing")
      elif self._shapes[name] != piece.their_shape:
        problems.append(
          f"{name} is {self._shapes[name]}, not {piece.their_shape}"
        )
    if problems:
      shown = "; ".join(problems[:_SHOWN])
      more = len(problems) - _SHOWN
      raise ConfigError(
        f"{self._path} is not the {facts_lib.KINDS[self.facts.kind]} of "
        f"{self._name} that it seems to be: {shown}"
        + (f"; and {more} more" if more > 0 else "")
        + ". See that it is whole and of a plain ViT"
      )
    self._notes += [
      f"left out: {what} ({count} tensors)" for what, count in left_out.items()
    ]
    if zeros:
      self._notes.append(
        f"{len(zeros)} biases of queries, keys and values that are not there "
        "are zero here"
      )
    return zeros

  def _positions(
    self,
    pieces: dict[str, list[names_lib.Piece]],
    patch: tuple[int, int, int],
    dtype: np.dtype,
  ) -> dict[str, tuple[int, ...]]:
    """Compares tables with ours, where ours are fixed; carries what differs.

    Returns:
      The shapes of tables that are carried, of which `pieces` gets those too.
    """
    carried = {}
    if self._hints.positions == "sincos":
      facts_lib.check_fixed(self.facts, str(self._path))
    for path, part in weights_lib.TABLES.items():
      name = str(self._dialect.names[path])
      if part == "decoder" and self.facts.decoder is None:
        continue
      ours = weights_lib.fixed_table(self.facts, part)
      trained = path in pieces
      if not trained:
        if self._shapes.get(name) != ours.shape:
          raise ConfigError(
            f"{self._path}: {name} is {self._shapes.get(name, 'missing')}, and "
            f"images of {self.facts.image_size} have positions {ours.shape}: "
            "give their size with --image_size"
          )
        pieces[path] = names_lib.pieces(
          path, ours.shape, self._dialect.names, patch
        )
      theirs = self._read(path, ours.shape, pieces[path], set(), dtype)
      self._check_zeros(name, theirs)
      if trained:
        continue
      if self._carries(part, name, ours.astype(dtype), theirs):
        carried[path] = ours.shape
      else:
        del pieces[path]
    return carried

  def _check_zeros(self, name: str, table: np.ndarray) -> None:
    if not table.any() and self._hints.positions is None:
      raise ConfigError(
        f"{self._path}: {name} is all zeros, as transformers 5 makes it for "
        "networks that were not loaded from a file: convert it with "
        "--positions=keep if they were trained so"
        + (
          ", or --positions=sincos for the reference's table"
          if facts_lib.is_fixed(self.facts)
          else "; if not, train it again from positions that are not"
        )
        + " (python -m mae_jax convert)"
      )

  def _carries(
    self, part: str, name: str, ours: np.ndarray, theirs: np.ndarray
  ) -> bool:
    if ours.tobytes() == theirs.tobytes():
      return False
    if self._hints.positions == "sincos":
      self._notes.append(
        f"the positions of the {part} ({name}) are replaced by the sin-cos "
        "table"
      )
      return False
    difference = np.abs(
      ours.astype(np.float32) - theirs.astype(np.float32)
    ).max()
    self._notes.append(
      f"the positions of the {part} ({name}) differ from the sin-cos table by "
      f"up to {difference:.2g}: they are carried"
    )
    return True

  def _read(
    self,
    path: str,
    shape: tuple[int, ...],
    pieces: list[names_lib.Piece],
    zeros: set[str],
    dtype: np.dtype,
  ) -> np.ndarray:
    array = np.zeros(shape, dtype) if zeros else np.empty(shape, dtype)
    with self._tensors.reading() as read:
      for piece in pieces:
        if piece.name in zeros:
          continue
        theirs = read(self._original[piece.name])
        _check_finite(theirs, piece.name, self._path)
        piece.put(array, theirs)
    return array


def _usual(name: str, spellings: Any) -> str:
  for pattern, replacement in spellings:
    name = re.sub(pattern, replacement, name)
  return name


def _check_sizes(path: pathlib.Path, found: tensor_files.Tensors) -> None:
  for name, shape in found.shapes.items():
    if 0 in shape:
      raise ConfigError(
        f"{path}: {name} has shape {shape}, with no values in it: save the "
        "weights without it, or fetch them again"
      )


def _others(found: tensor_files.Tensors) -> list[str]:
  """A note for each other network of the same names, as averages are."""
  return [
    f"left out: {key!r}, other values of {len(found.shapes.keys() & value)} of "
    "these tensors; to take those, save them as {'model': ...}"
    for key, value in found.extra.items()
    if isinstance(value, Mapping) and found.shapes.keys() & value
  ]


def _check_finite(array: np.ndarray, name: str, path: pathlib.Path) -> None:
  with np.errstate(over="ignore"):
    finite = np.isfinite(array.astype(np.float32, copy=False))
  if not finite.all():
    raise ConfigError(
      f"{path}: {name} has {int((~finite).sum())} values of {array.size} that "
      "are NaN or infinite, as after a run that diverged: take the weights of "
      "an earlier step"
    )


def _own_metadata(
  path: pathlib.Path, found: tensor_files.Tensors
) -> checkpoints.CheckpointMetadata | None:
  text = found.extra.get(METADATA)
  if not isinstance(text, str):
    return None
  try:
    run = run_config.run_of_metadata(json.loads(text))
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise ConfigError(
      f"{path} was written by another version of mae_jax, and what it says of "
      f"its run cannot be read ({error})"
    ) from error
  run_config.check_one(path, run)
  return run
