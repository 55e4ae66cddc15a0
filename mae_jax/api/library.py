"""The border of the API: nothing is printed, and errors name arguments."""

import contextlib
import functools
import inspect
import logging
import operator
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from absl import logging as absl_logging
from etils import epath

from mae_jax.config.validate import LARGEST_INT
from mae_jax.utils import console, errors
from mae_jax.utils.errors import ConfigError, abbreviate

_P = ParamSpec("_P")
_R = TypeVar("_R")
# Messages are written for the command line: `--layer=7`, `--config.data.path`.
_DASHES = re.compile(r"(?<![\w.-])(?:--|--config\.|config\.)(?=[a-z])")


def _not_ours(record: logging.LogRecord) -> bool:
  return record.levelno >= logging.ERROR or not console.in_library()


# Orbax warns of files that checkpoints of this project do not need.
absl_logging.get_absl_logger().addFilter(_not_ours)


@contextlib.contextmanager
def quiet(
  notes: list[str] | None = None, progress: bool = False
) -> Iterator[None]:
  """Runs a block as a library.

  Warnings go to `warnings.warn`. A caller's `jax.transfer_guard` is for the
  caller's code, and does not hold in the block.

  Args:
    notes: collects messages; None to drop them.
    progress: whether to draw progress bars on standard error.

  Raises:
    ConfigError: with names of arguments and settings instead of flags.
  """
  jax = sys.modules.get("jax")  # a recipe needs none
  guard = jax.transfer_guard("allow") if jax else contextlib.nullcontext()
  try:
    with guard, console.as_library([] if notes is None else notes, progress):
      yield
  except ModuleNotFoundError as error:
    raise (errors.missing_extra(error) or error) from error
  except ConfigError as error:
    text = _DASHES.sub("", str(error))
    raise type(error)(text).with_traceback(error.__traceback__) from (
      error.__cause__
    )


def public(function: Callable[_P, _R]) -> Callable[_P, _R]:
  """Makes a function run inside `quiet`."""

  @functools.wraps(function)
  def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
    with quiet():
      return function(*args, **kwargs)

  return call


def explained(
  **hints: str,
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
  """Makes a function explain arguments that other libraries have.

  Args:
    **hints: the way out, by the name of an argument that the function lacks.
  """

  def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
      for name in kwargs.keys() & hints.keys() - known.keys():
        raise ConfigError(
          f"{name} is no argument of {function.__name__}: {hints[name]}"
        )
      return function(*args, **kwargs)

    return call

  return decorate


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


def numbers(name: str, values: Any) -> tuple[float, ...]:
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
