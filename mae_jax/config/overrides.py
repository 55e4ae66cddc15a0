"""Overrides on the command line, where ml_collections leaves a user alone.

It adds up the items of a tuple that is given twice, where of any other setting
the last one counts, and says of a wrong key or value what Python says.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import os
import re
import runpy
import signal
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
from absl import flags, logging
from ml_collections import config_dict as mlc
from ml_collections import config_flags

from mae_jax.config.schema import Config
from mae_jax.config.validate import check_key, from_config_dict
from mae_jax.utils import console, errors, signals
from mae_jax.utils.errors import ConfigError

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)")
_WORD, _ROW = re.compile(r"[A-Za-z]\w*"), re.compile("0[01]+")
_EXAMPLE = "name a recipe, such as configs/digits.py"


class _Parser(flags.ArgumentParser):
  """Another parser, whose errors say what to write."""

  def __init__(self, parser: flags.ArgumentParser, wanted: str):
    self._parser, self._wanted = parser, wanted

  def parse(self, argument: Any) -> Any:
    try:
      return self._parser.parse(argument)
    except (TypeError, ValueError):
      raise ValueError(f"write {self._wanted}") from None

  def flag_type(self) -> str:
    return self._parser.flag_type()


class _TupleParser(flags.ArgumentParser):
  """Reads "8", "8,16", "(8, 16)" or "a,b"; what is in it is checked later."""

  def parse(self, argument: Any) -> tuple:
    if isinstance(argument, str):
      items = [item.strip() for item in argument.split(",")]
      # Rows of a mask, as 0110, are no numbers either.
      if all(map(_WORD.fullmatch, items)) or any(map(_ROW.fullmatch, items)):
        return tuple(items)
      try:
        argument = ast.literal_eval(argument.strip())
      except (SyntaxError, MemoryError, RecursionError):
        raise ValueError from None
    # Lists are as good; sets and dicts would lose the order or the values.
    if isinstance(argument, list | tuple):
      return tuple(argument)
    return (argument,)

  def flag_type(self) -> str:
    return "tuple"


def register_parsers() -> None:
  """Makes ml_collections read overrides by the classes above."""
  for kind, parser, wanted in (
    (int, flags.IntegerParser(), "a whole number"),
    (float, flags.FloatParser(), "a number"),
    (bool, flags.BooleanParser(), "true or false"),
    (
      tuple,
      _TupleParser(),
      "a number, or several with commas, as 8,16",
    ),
  ):
    config_flags.register_flag_parser_for_type(kind, _Parser(parser, wanted))


def parse(argv: list[str], recipe: flags.FlagHolder) -> list[str]:
  """Reads the command line and the recipe, which may be any program.

  Args:
    argv: as `app.run` gives it.
    recipe: the flag --config.

  Returns:
    What is no flag.

  Raises:
    SystemExit: with one line, if there is a mistake.
  """
  # Of what goes wrong here, what is raised says enough.
  logging.set_verbosity(logging.FATAL)
  try:
    check_arguments(argv)
    rest = flags.FLAGS(argv)
    check_recipe(recipe.value, argv)
    return rest
  except Exception as error:
    if any(each.startswith("--debug") for each in argv):
      raise
    sys.exit(f"error: {explain(error, argv)}")


@contextlib.contextmanager
def one_line(
  argv: Sequence[str], debug: bool, stopped: str = "stopped by Ctrl-C"
) -> Iterator[None]:
  """Ends the program with a line for whatever goes wrong inside.

  Args:
    argv: what is no flag, of which there may be nothing but the program.
    debug: whether errors are raised instead.
    stopped: what is said after Ctrl-C.
  """
  logging.set_verbosity(logging.FATAL)
  signals.raise_at_once()
  try:
    if len(argv) > 1:
      raise ConfigError(f"{argv[1]!r} is not a flag: write --name=value")
    yield
  except KeyboardInterrupt:
    if debug:
      raise
    console.final_message(stopped)
    signals.leave(128 + signal.SIGINT)
  except Exception as error:
    line = errors.explain(error)
    if debug or line is None:
      raise
    sys.exit(f"error: {line}")


def check_arguments(argv: Sequence[str]) -> None:
  """Refuses a recipe that is no file, and overrides of what is not in it.

  Raises:
    ConfigError: with the nearest name there is.
  """
  path = recipe_of(argv)
  if path is not None and not os.path.isfile(path.partition(":")[0]):
    raise ConfigError(f"--config={path} is not a file: {_EXAMPLE}")
  for arg in argv:
    if match := _OVERRIDE.match(arg):
      check_key(match[1])


def check_recipe(values: Any, argv: Sequence[str]) -> None:
  """Refuses what is no config.

  Raises:
    ConfigError: if there is none, or `get_config` returned something else.
  """
  path = recipe_of(argv)
  if path is None:
    raise ConfigError(f"--config is missing: {_EXAMPLE}")
  if not isinstance(values, ml_collections.ConfigDict):
    raise ConfigError(
      f"get_config of {path} returned a {type(values).__name__}: return "
      "mae_jax.config.config_dict(Config(...))"
    )


def recipe(text: str) -> Config:
  """The config of a recipe, as --config names it: a file, ":" and arguments.

  Raises:
    ConfigError: if there is no such file, or it gives no config.
  """
  path, _, arg = text.partition(":")
  if not os.path.isfile(path):
    raise ConfigError(f"recipe {path} is not a file: {_EXAMPLE}")
  try:
    values = runpy.run_path(path)["get_config"](arg or None)
    return from_config_dict(values)
  except ConfigError:
    raise
  except Exception as error:  # it may be any program
    raise ConfigError(
      f"recipe {text}: {type(error).__name__}: {error}"
    ) from error


def explain(error: Exception, argv: Sequence[str]) -> str:
  """One line for what went wrong with the flags or in the recipe's code."""
  text = str(error).replace("\\n", "\n").replace("\\'", "'").strip()
  if isinstance(error, ConfigError):
    pass
  elif "Traceback" in text:  # of the recipe, of which the end counts
    text = text.splitlines()[-1]
    own = f"{ConfigError.__module__}.{ConfigError.__name__}: "
    text = f"{recipe_of(argv)}: {text.removeprefix(own)}"
  elif not isinstance(error, flags.Error):
    text = f"{recipe_of(argv)}: {type(error).__name__}: {text}"
  text = " ".join(text.split())
  # A value may be long; what is said of it comes first or last.
  return text if len(text) <= 500 else f"{text[:250]} ... {text[-250:]}"


def recipe_of(argv: Sequence[str]) -> str | None:
  """The value of --config, of which the last one counts; None without."""
  found = None
  for arg, following in zip(argv, [*argv[1:], ""], strict=True):
    name, equals, value = arg.partition("=")
    if name in ("--config", "-config"):
      found = value if equals else following
  return found


def config_dict(config: Config) -> ml_collections.ConfigDict:
  """A locked, overridable ConfigDict in which `optim.lr` follows the batch."""
  result = _to_dict(config)
  if config.optim.lr is None:
    optim = result.optim
    batch_size = result.data.get_ref("batch_size")
    # Removed first: the typed placeholder does not take a reference.
    with result.unlocked():
      del optim.lr
      optim.lr = optim.get_ref("blr") * batch_size / 256
  return result.lock()


def parse_arg(arg: str | None, **defaults: Any) -> types.SimpleNamespace:
  """Reads a config file's argument, as in `configs/vit_l.py:epochs=1600`.

  Args:
    arg: "key=value,key=value" or None.
    **defaults: the known keys; a value takes the type of its default.

  Raises:
    ConfigError: on an unknown key or a value of another type.
  """
  result = dict(defaults)
  given: set[str] = set()
  for part in filter(None, (arg or "").split(",")):
    key, equals, value = part.partition("=")
    if key not in defaults or not equals:
      raise ConfigError(
        f"config argument {part!r} is not known: "
        + (
          f"write key=value, where key is one of {', '.join(defaults)}"
          if defaults
          else "this config takes none"
        )
      )
    if key in given:
      raise ConfigError(f"config argument {key} is given twice: {arg}")
    given.add(key)
    try:
      result[key] = type(defaults[key])(value)
    except ValueError:
      raise ConfigError(
        f"config argument {key}={value!r} is not of type "
        f"{type(defaults[key]).__name__}"
      ) from None
  return types.SimpleNamespace(**result)


def _to_dict(section: Any) -> ml_collections.ConfigDict:
  hints = typing.get_type_hints(type(section))
  result = ml_collections.ConfigDict()
  for field in dataclasses.fields(section):
    value = getattr(section, field.name)
    if dataclasses.is_dataclass(value):
      value = _to_dict(value)
    elif value is None:
      # A typed placeholder, so that the command line knows how to parse it.
      kind = typing.get_args(hints[field.name])[0]
      value = mlc.placeholder(typing.get_origin(kind) or kind)
    result[field.name] = value
  return result
