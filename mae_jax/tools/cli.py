"""Makes a command of a function: flags from its signature, help from its docs.

A command is a function. Its positional-only parameters become arguments, the
others become flags. Types come from the annotations, defaults
from the signature, and help texts from the docstring. A parameter annotated
`Config` stands for `--config=FILE` and `--config.SECTION.SETTING=VALUE`.
"""

from __future__ import annotations

import argparse
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


def size(text: str) -> tuple[int, int]:
  """Reads an image size, "224" or "192,256"."""
  try:
    sides = [int(side) for side in text.strip("()").split(",")]
    height, width = sides * 2 if len(sides) == 1 else sides
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"{text!r} is no size: write 224, or height and width as 192,256"
    ) from None
  return height, width


def position(text: str) -> tuple[int, int]:
  """Reads the row and column of a patch, as "3,7"."""
  try:
    row, column = map(int, text.split(","))
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"{text!r} is no patch: write its row and column, as 3,7"
    ) from None
  return row, column


def numbers(text: str) -> tuple[float, ...]:
  """Reads numbers with commas, as "0.5,0.75"."""
  try:
    return tuple(float(part) for part in text.strip("()").split(","))
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"{text!r} is not a number, or several with commas, as 0.5,0.75"
    ) from None


def words(text: str) -> tuple[str, ...]:
  """Reads words with commas, as "a,b"."""
  return tuple(text.split(","))


def paths(text: str) -> tuple[str, ...]:
  """Reads paths with commas; ~ is the home directory."""
  return tuple(map(os.path.expanduser, text.split(",")))


# Types of flags, each with the function that reads it.
Path = Annotated[str, os.path.expanduser]
Paths = Annotated[tuple[str, ...], paths]
Words = Annotated[tuple[str, ...], words]
Numbers = Annotated[tuple[float, ...], numbers]
Size = Annotated[tuple[int, int], size]
Position = Annotated[tuple[int, int], position]


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
  """Makes the parser of a command.

  Args:
    function: the command.
    name: of the command, for the usage line.
  """
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
  for parameter in inspect.signature(function).parameters.values():
    kind = hints[parameter.name]
    if kind is Config:
      result.usage = f"mae-jax {name} --config=FILE [--flag=value ...]"
      result.epilog = overrides.help_text()
      result.add_argument(
        "--config",
        help=f"{_one_line(texts[parameter.name])}; --config.data.path=DIR and "
        "the like override settings, which are listed below",
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
  if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
    result.add_argument(
      parameter.name,
      metavar=parameter.name.upper(),
      nargs=None if required else "?",
      default=None if required else default,
      type=_reader(kind),
      help=text,
    )
    return
  flag = f"--{parameter.name.removesuffix('_')}"
  if kind is bool:
    flag = flag.replace("--", "--no_") if default else flag
    action = "store_false" if default else "store_true"
    result.add_argument(flag, dest=parameter.name, action=action, help=text)
    return
  if default not in (None, (), "", inspect.Parameter.empty):
    text += f" (default: {default})"
  result.add_argument(
    flag,
    dest=parameter.name,
    required=required,
    default=None if required else default,
    type=_reader(kind),
    metavar=flag.strip("-").upper(),
    help=text,
  )


def _reader(kind: Any) -> Callable[[str], Any]:
  reader: Callable[[str], Any] = getattr(kind, "__metadata__", (kind,))[0]
  return reader


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

  Args:
    function: the command.
    name: of the command.
    argv: its command-line arguments.
    interrupted: printed after Ctrl-C or SIGTERM.
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
    line = _explain(error, "batch_size" in values)
    if debug or line is None:
      raise
    raise SystemExit(f"error: {line}") from None


def _explain(error: Exception, has_batch: bool) -> str | None:
  if errors.is_out_of_memory(error):
    # The way out of `errors` is that of training.
    way_out = "take a smaller --batch_size" if has_batch else "free some"
    return f"out of memory: {console.first_line(error)}: {way_out}"
  return errors.explain(error)


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
