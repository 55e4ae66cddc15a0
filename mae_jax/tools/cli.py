"""Makes a command of a function: flags from its signature, help from its docs.

A command is a function. Its positional-only parameters become arguments, the
others become flags. Types come from the annotations, defaults
from the signature, and help texts from the docstring. A parameter annotated
`Config` stands for `--config=RECIPE` and `--config.SECTION.SETTING=VALUE`.
"""

import argparse
import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn

import docstring_parser
from absl import logging
from etils import epath

from mae_jax.config import Config, overrides
from mae_jax.utils import console, errors, signals, storage
from mae_jax.utils.errors import ConfigError


def _split(text: str, kind: type, counts: Sequence[int], what: str) -> tuple:
  """Reads numbers with commas, as many as one of `counts`, () for any."""
  try:
    found = tuple(kind(part) for part in text.strip("()").split(","))
  except ValueError:
    found = ()
  if not found or (counts and len(found) not in counts):
    raise argparse.ArgumentTypeError(f"{text!r} is {what}")
  return found


def _size(text: str) -> tuple[int, int]:
  what = "no size: write 224, or height and width as 192,256"
  sides = _split(text, int, (1, 2), what)
  return sides[0], sides[-1]


def _position(text: str) -> tuple[int, int]:
  what = "no patch: write its row and column, as 3,7"
  return _split(text, int, (2,), what)


def _floats(text: str) -> tuple[float, ...]:
  what = "not a number, or several with commas, as 0.5,0.75"
  return _split(text, float, (), what)


def _ints(text: str) -> tuple[int, ...]:
  what = "no whole number, or several with commas, as 3,6,9,12"
  return _split(text, int, (), what)


# Types of flags, each with the function that reads it. Lists have commas, and ~
# is the home directory.
Path = Annotated[str, os.path.expanduser]
Paths = Annotated[
  tuple[str, ...], lambda text: tuple(map(os.path.expanduser, text.split(",")))
]
Words = Annotated[tuple[str, ...], lambda text: tuple(text.split(","))]
Numbers = Annotated[tuple[float, ...], _floats]
Integers = Annotated[tuple[int, ...], _ints]
Size = Annotated[tuple[int, int], _size]
Position = Annotated[tuple[int, int], _position]


class _Parser(argparse.ArgumentParser):
  """A parser whose errors are one line."""

  def error(self, message: str) -> NoReturn:
    hint = "--help lists all flags"
    if message.startswith("unrecognized arguments: "):
      unknown = message.partition(": ")[2].split()[0]
      name = unknown.partition("=")[0]
      known = [
        option for action in self._actions for option in action.option_strings
      ]
      message = f"{name} is not a flag"
      if not unknown.startswith("-"):
        message = f"{unknown!r} is not a flag: write --name=value"
      elif close := overrides.close_to(name, known):
        message += f": did you mean {close}?"
    raise SystemExit(f"error: {message}; {hint}")


def parser(function: Callable[..., None], name: str) -> argparse.ArgumentParser:
  """Makes the parser of a command; its usage line has the name."""
  docs = docstring_parser.parse(inspect.cleandoc(function.__doc__ or ""))
  texts = {each.arg_name: each.description or "" for each in docs.params}
  result = _Parser(
    prog=f"mae-jax {name}",
    description="\n\n".join(
      filter(None, [docs.short_description, docs.long_description])
    ),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  hints = typing.get_type_hints(function, include_extras=True)
  parameters = inspect.signature(function).parameters.values()
  needed = [
    f"--{each.name}={each.name.upper()}"
    for each in parameters
    if each.default is each.empty and hints[each.name] is not Config
  ]
  for parameter in parameters:
    kind = hints[parameter.name]
    if kind is Config:
      result.usage = " ".join(
        [f"mae-jax {name} --config=RECIPE", *needed, "[--flag=value ...]"]
      )
      result.epilog = overrides.help_text()
      result.add_argument(
        "--config",
        help=f"{_one_line(texts[parameter.name])}; --config.data.path=DIR and "
        "the like override settings, which are listed below (required)",
      )
    else:
      _add(result, parameter, kind, _one_line(texts[parameter.name]))
  result.add_argument(
    "--debug", action="store_true", help="show where an error was raised"
  )
  return result


def _one_line(text: str) -> str:
  return " ".join(text.split()).replace("%", "%%").removesuffix(".")


def _add(
  result: argparse.ArgumentParser,
  parameter: inspect.Parameter,
  kind: Any,
  text: str,
) -> None:
  default = parameter.default
  required = default is inspect.Parameter.empty
  if typing.get_origin(kind) in (types.UnionType, typing.Union):  # X | None
    kind = next(x for x in typing.get_args(kind) if x is not type(None))
  if not hasattr(kind, "__metadata__") and kind not in (bool, int, float, str):
    return  # for Python callers
  name = parameter.name.removesuffix("_")
  add = functools.partial(result.add_argument, help=text)
  if kind is bool:
    flag = f"--no_{name}" if default else f"--{name}"
    action = "store_false" if default else "store_true"
    add(flag, dest=parameter.name, action=action)
    return
  options = {
    "type": getattr(kind, "__metadata__", (kind,))[0],
    "default": None if required else default,
    "metavar": name.upper(),
  }
  if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
    add(parameter.name, nargs=None if required else "?", **options)
    return
  if required:
    options["help"] = f"{text} (required)"
  elif default not in (None, (), ""):
    options["help"] = f"{text} (default: {default})"
  add(f"--{name}", dest=parameter.name, required=required, **options)


def parse(
  function: Callable[..., None], name: str, argv: Sequence[str]
) -> dict[str, Any]:
  """Reads the flags of a command.

  Returns:
    The arguments of `function` by name, and "debug".

  Raises:
    ConfigError: if a recipe or a setting is wrong.
    SystemExit: with one line, if a flag is wrong; or after --help.
  """
  hints = typing.get_type_hints(function)
  configs = [key for key, kind in hints.items() if kind is Config]
  settings: list[str] = []
  flags = list(argv)
  if configs:
    settings, flags = overrides.split(argv)
  values = vars(parser(function, name).parse_args(flags))
  if configs:
    del values["config"]
    values[configs[0]] = overrides.load(settings)
  return values


def run(
  function: Callable[..., None],
  name: str,
  argv: Sequence[str],
  *,
  interrupted: str = "stopped: nothing is written",
) -> None:
  """Runs a command, and says in one line what went wrong.

  After Ctrl-C or SIGTERM the line is `interrupted`.
  """
  debug = "--debug" in argv
  logging.set_verbosity(logging.FATAL)  # errors are reported below
  values: dict[str, Any] = {}
  try:
    values = parse(function, name, argv)
    debug = values.pop("debug")
    signals.exit_on_signals(interrupted)
    arguments = [
      values.pop(each.name)
      for each in inspect.signature(function).parameters.values()
      if each.kind is inspect.Parameter.POSITIONAL_ONLY
    ]
    function(*arguments, **values)
  except Exception as error:
    line = errors.explain(error)
    if errors.is_out_of_memory(error):
      # The way out of `errors` is that of training.
      small = "take a smaller --batch_size"
      way_out = small if "batch_size" in values else "free some"
      line = f"out of memory: {console.first_line(error)}: {way_out}"
    if debug or line is None:
      raise
    raise SystemExit(f"error: {line}") from None


def at_least(name: str, value: float, least: float = 1) -> None:
  """Checks a flag's lower bound.

  Raises:
    ConfigError: if the value is smaller.
  """
  if value < least:
    raise ConfigError(f"--{name}={value} must be at least {least}")


def read_lines(path: str, flag: str) -> list[str]:
  """Reads a text file that has the name of one class on each line.

  Raises:
    ConfigError: if it cannot be read, or a line is empty.
  """
  try:
    with storage.os_errors(path):
      text = epath.Path(path).read_bytes().decode("utf-8-sig")
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, "strerror", None) or error
    raise ConfigError(
      f"{flag}={path} cannot be read ({reason}): name a text file with the "
      "name of one class on each line"
    ) from error
  found = [line.strip() for line in text.strip().splitlines()]
  if "" in found:
    raise ConfigError(
      f"{flag}={path} has nothing in line {1 + found.index('')}: write the "
      "name of one class on every line"
    )
  return found
