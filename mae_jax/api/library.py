"""The border of the API: nothing is printed, and errors name arguments."""

import contextlib
import functools
import inspect
import logging
import re
import sys
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from absl import logging as absl_logging

from mae_jax.utils import console, errors
from mae_jax.utils.errors import ConfigError

_P = ParamSpec("_P")
_R = TypeVar("_R")
# Messages are written for the command line. Replaced in order.
_IN_PYTHON = (
  # `from_pretrained` detects the format.
  (r", or choose another format with --from \(python -m mae_jax convert\)", ""),
  # `--layer=7`, `--config.data.path`; no name of a file, such as config.json
  (r"(?<![\w./-])(?:--|--config\.|config\.(?!json\b))(?=[a-z])", ""),
  # Of `save_pretrained`.
  (r"^OUT\b", "path"),
  (r"\bconvert with to=", "use format="),
  # Of `from_pretrained`, which has convert's flags as arguments.
  (r"\bconvert (?:it )?with\b", "pass"),
  (r" \(python -m mae_jax convert\)", ""),
)


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
    text = str(error)
    for pattern, name in _IN_PYTHON:
      text = re.sub(pattern, name, text)
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
