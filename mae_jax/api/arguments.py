"""Checks of arguments; errors name the argument and the way out."""

import numbers
import operator
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from mae_jax.config.validate import LARGEST_INT
from mae_jax.models import classifiers
from mae_jax.utils.errors import ConfigError, abbreviate


def integer(name: str, value: Any, least: int | None = None) -> int:
  """Returns an argument that must be an integer.

  Args:
    name: the argument.
    value: its value: an int, or an integer of NumPy or JAX.
    least: the smallest allowed value; None for any.

  Raises:
    ConfigError: if it is none, or too small.
  """
  try:
    number = operator.index(value)
  except TypeError:
    raise ConfigError(
      f"{name}={abbreviate(value)} is a {type(value).__name__}: give an integer"
    ) from None
  if least is not None and number < least:
    raise ConfigError(f"{name}={number} must be at least {least}")
  return number


def seed(value: Any) -> int:
  """Returns a seed, an integer from which JAX makes a key of its own.

  Raises:
    ConfigError: if it is none.
  """
  number = integer("seed", value, 0)
  if number > LARGEST_INT:
    raise ConfigError(f"seed={number} must be at most {LARGEST_INT}")
  return number


def size(name: str, value: Any) -> tuple[int, int]:
  """Returns height and width, of one number or a pair.

  Raises:
    ConfigError: if it is neither.
  """
  try:
    sides = [integer(name, each, 1) for each in value]
  except TypeError:  # one number
    sides = [integer(name, value, 1)] * 2
  if len(sides) != 2:
    raise ConfigError(
      f"{name}={abbreviate(value)} must be height and width, or one number"
    )
  return sides[0], sides[1]


def per_channel(name: str, values: Any) -> tuple[float, ...]:
  """Returns numbers, one for each channel.

  Raises:
    ConfigError: if they are something else.
  """
  try:
    return tuple(float(value) for value in values)
  except (TypeError, ValueError):
    raise ConfigError(
      f"{name}={values!r} must be a list of one number for each channel"
    ) from None


def path(name: str, value: Any) -> str:
  """Returns a path as a string, "~" expanded.

  Raises:
    ConfigError: if it is none, or empty, or an address that cannot be opened.
  """
  if not isinstance(value, str | os.PathLike):
    raise ConfigError(
      f"{name}={abbreviate(value)} is a {type(value).__name__}: give a path"
    )
  text = os.path.expanduser(os.fspath(value))
  if not text:
    raise ConfigError(f"{name} is empty: give a path")
  try:
    epath.Path(text)
  except KeyError:  # no file system has this prefix
    scheme, _, rest = text.partition("://")
    way_out = "download it and give a path, or use a bucket (gs://...)"
    if scheme == "file":
      way_out = f"use {rest}"
    if rest.startswith("huggingface.co/"):
      way_out = f"use hf://{rest.removeprefix('huggingface.co/')}"
    raise ConfigError(
      f"{name}={abbreviate(text)} cannot be opened: {way_out}"
    ) from None
  return text


def fraction(name: str, value: Any) -> float:
  """Returns a number above 0 and below 1.

  Raises:
    ConfigError: if it is none.
  """
  if not isinstance(value, numbers.Real):
    raise ConfigError(
      f"{name}={abbreviate(value)} is a {type(value).__name__}: give a number "
      "above 0 and below 1"
    )
  share = float(value)
  if not 0 < share < 1:
    raise ConfigError(f"{name}={value} must be above 0 and below 1")
  return share


def layers(values: Any) -> tuple[int, ...]:
  """Returns numbers of blocks.

  Raises:
    ConfigError: if they are something else.
  """
  if isinstance(values, str) or not hasattr(values, "__iter__"):
    raise ConfigError(
      f"layers={abbreviate(values)} is a {type(values).__name__}: give numbers "
      "of blocks, as [4]"
    )
  return tuple(integer("layers", each) for each in values)


def mask(values: Any, grid: tuple[int, int]) -> np.ndarray:
  """Returns a mask of patches as bool [L].

  Raises:
    ConfigError: if it has another shape than `grid`, or masks all or none.
  """
  array = np.asarray(values, bool)
  if array.shape != grid:
    raise ConfigError(
      f"mask has shape {array.shape}, but the patches have {grid}: give True "
      "for each masked patch, in rows and columns"
    )
  if array.all() or not array.any():
    raise ConfigError(
      "mask must leave some patches visible and mask others: it has "
      f"{array.sum()} of {array.size}"
    )
  return array.reshape(-1)


def token(query: tuple[int, int] | None, grid: tuple[int, int]) -> int:
  """Returns the number of a patch's token; 0, the class token, for None.

  Raises:
    ConfigError: if `query` is no row and column of `grid`.
  """
  if query is None:
    return 0
  try:
    row, column = (integer("query", each) for each in query)
  except TypeError:
    raise ConfigError(
      f"query={abbreviate(query)} is a {type(query).__name__}: give a row and "
      "a column"
    ) from None
  rows, columns = grid
  if not (0 <= row < rows and 0 <= column < columns):
    raise ConfigError(
      f"query={query}: the image has {rows} rows and {columns} columns of "
      "patches; the first is (0, 0)"
    )
  return 1 + row * columns + column


def check_params(params: Any) -> None:
  """Raises ConfigError for what is no tree of parameters by role."""
  if not isinstance(params, Mapping) or classifiers.MODEL not in params:
    parts = " with " + ", ".join(params) if isinstance(params, Mapping) else ""
    raise ConfigError(
      f"params is a {type(params).__name__}{abbreviate(parts)[1:-1]}: give a "
      "tree like model.params, which has parameters by role"
    )


def check_pixels(images: Any, shape: tuple[int, int, int]) -> None:
  """Raises ConfigError unless images are an array [B, *shape], B above 0."""
  if not isinstance(images, jax.Array | np.ndarray):
    raise ConfigError(
      f"images is a {type(images).__name__}: give a NumPy or JAX array, as "
      "numpy.asarray(images)"
    )
  _check_axes(images)
  if images.ndim != 4 or images.shape[1:] != shape:
    raise ConfigError(
      f"images has shape {tuple(images.shape)}: this network takes [B, "
      f"{', '.join(map(str, shape))}]"
    )
  if not images.shape[0]:
    raise ConfigError("images is empty: give at least one image")


def _check_axes(images: Any) -> None:
  """Refuses meshes of explicit axes: networks state no shardings."""
  where = jax.typeof(images).sharding.mesh, jax.sharding.get_abstract_mesh()
  for mesh in where:
    if mesh.explicit_axes:
      raise ConfigError(
        f"images or jax.set_mesh have a mesh of explicit axes "
        f"{', '.join(mesh.explicit_axes)}: make it with "
        "axis_types=(jax.sharding.AxisType.Auto,) for each axis"
      )
