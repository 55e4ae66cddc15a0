"""The border of the API: nothing is printed, and errors name arguments."""

import contextlib
import functools
import logging
import re
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from absl import logging as absl_logging

from mae_jax.utils import console, errors
from mae_jax.utils.errors import ConfigError

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

  Warnings go to `warnings.warn`.

  Args:
    notes: collects messages; None to drop them.
    progress: whether to draw progress bars on standard error.

  Raises:
    ConfigError: with names of arguments and settings instead of flags.
  """
  try:
    with console.as_library([] if notes is None else notes, progress):
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
