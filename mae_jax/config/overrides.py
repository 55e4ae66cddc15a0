"""Reads recipes and overrides: `--config=NAME --config.data.path=DIR`.

A recipe is a file, or the name of one that comes with the package: the files of
`configs/` in a checkout, which an installed package has as `mae_jax/configs/`.
"""

import ast
import dataclasses
import difflib
import os
import pathlib
import re
import runpy
import textwrap
import traceback
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict as mlc

from mae_jax.config.schema import SECTIONS, Config, rules
from mae_jax.config.validate import (
  check_key,
  check_name,
  current_setting,
  from_config_dict,
)
from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError, abbreviate, printable

_OVERRIDE = re.compile(r"--?(no)?config(?:\.([^=]*))?(?:=(.*))?", re.DOTALL)
_WORD, _ROW = re.compile(r"[A-Za-z]\w*"), re.compile("0[01]+")
_EXAMPLE = "name a recipe, such as digits, or a file"


def recipe_names() -> tuple[str, ...]:
  """Lists the recipes that come with the package, by name."""
  return tuple(sorted(path.stem for path in _recipe_folder().glob("[!_]*.py")))


def _recipe_folder() -> pathlib.Path:
  package = pathlib.Path(__file__).parents[1]
  installed = package / "configs"
  return installed if installed.is_dir() else package.parent / "configs"


def find_recipe(text: str, field: str = "recipe") -> str:
  """Finds the file of a recipe.

  Args:
    text: a file or the name of a packaged recipe, maybe with an argument:
      "configs/vit_l.py", "vit_l" or "vit_l:epochs=1600".
    field: where the text comes from, for the message.

  Returns:
    The path and the argument: "FILE" or "FILE:epochs=1600".

  Raises:
    ConfigError: if there is no such file or recipe.
  """
  path, colon, argument = text.partition(":")
  names = recipe_names()
  if path in names:
    path = str(_recipe_folder() / f"{path}.py")
  elif not os.path.isfile(path):
    if re.fullmatch(r"[\w-]+", path):
      check_name(names, path, field)
    separator = "=" if field.startswith("-") else " "
    raise ConfigError(
      f"{field}{separator}{printable(path)} is not a file: {_EXAMPLE}"
    )
  return f"{path}{colon}{argument}"


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Parts the arguments of a config from the flags of a command.

  Returns:
    Arguments as "--config=FILE" and "--config.data.flip=true", and the rest.
    A value may also follow its name as an argument of its own.
  """
  settings, flags = [], []
  rest = list(argv)
  while rest:
    arg = rest.pop(0)
    match = _OVERRIDE.fullmatch(arg)
    if not match:
      flags.append(arg)
      continue
    negated, key, value = match.groups()
    name = "--config" if key is None else f"--config.{key}"
    if negated:
      value = "false"
    elif value is None and key is not None and _kind(key) is bool:
      value = "true"
    elif value is None:
      value = rest.pop(0) if rest else ""
    settings.append(f"{name}={value}")
  return settings, flags


def load(settings: Iterable[str]) -> Config:
  """Runs a recipe and applies overrides.

  Args:
    settings: of `split`; the last value of a setting counts.

  Raises:
    ConfigError: if there is no recipe, it does not return a config, or a
      setting is unknown or wrong.
  """
  path, overrides = None, []
  for each in settings:
    name, _, text = each.partition("=")
    if name == "--config":
      path = text
      continue
    key = name.removeprefix("--config.")
    new, _ = current_setting(key)
    check_key(new)
    overrides.append((key, new, text))
  if path is None:
    raise ConfigError(f"--config is missing: {_EXAMPLE}")
  values = _run(find_recipe(path, "--config"))
  for key, new, text in overrides:
    old = (
      _parse_bool(text)
      if key == "objective.norm_pix_loss"
      else _parse(new, text)
    )
    _, value = current_setting(key, old)
    if key != new or (isinstance(value, str) and value != text):
      console.warn(f"--config.{key}={text} is now --config.{new}={value}")
    section, _, field = new.rpartition(".")
    place = values[section] if section else values
    with place.unlocked(), place.ignore_type():
      place[field] = value
  return from_config_dict(values)


def recipe(text: str) -> Config:
  """Returns the config of a recipe.

  Args:
    text: a name or a file, maybe with an argument: "vit_l:epochs=1600".

  Raises:
    ConfigError: if there is no such recipe, or it does not return a config.
  """
  return from_config_dict(_run(find_recipe(text)))


def _run(text: str) -> ml_collections.ConfigDict:
  path, _, arg = text.partition(":")
  try:
    get_config = runpy.run_path(path).get("get_config")
    args = (arg,) if arg else ()
    values = get_config(*args) if get_config else None
  except ConfigError as error:
    raise ConfigError(f"{path}: {error}") from error
  except (Exception, SystemExit) as error:  # a recipe may be any program
    # Its text, also if its __str__ fails.
    said = traceback.TracebackException.from_exception(error)
    reason = " ".join(f"{type(error).__name__}: {said}".split())
    if len(reason) > 500:  # a value may be long; the ends say most
      reason = f"{reason[:250]} ... {reason[-250:]}"
    raise ConfigError(f"{path}: {reason}") from error
  if get_config is None:
    raise ConfigError(f"{path} has no function get_config")
  if not isinstance(values, ml_collections.ConfigDict):
    raise ConfigError(
      f"get_config of {path} returned a {type(values).__name__}: return "
      "mae_jax.config.config_dict(Config(...))"
    )
  return values


def recipe_of(argv: Sequence[str]) -> str | None:
  """Returns the value of --config, the last one of several; None without."""
  settings, _ = split(argv)
  recipes = [x.partition("=")[2] for x in settings if x.startswith("--config=")]
  return recipes[-1] if recipes else None


def close_to(name: str, known: Iterable[str]) -> str:
  """Returns the known name that is most like `name`, or ""."""
  return next(iter(difflib.get_close_matches(name, list(known), n=1)), "")


def _kind(key: str) -> Any:
  """Returns the type of a setting; None if there is no such setting."""
  section, _, field = current_setting(key)[0].rpartition(".")
  if section and section not in SECTIONS:
    return None
  hints = typing.get_type_hints(SECTIONS[section] if section else Config)
  kind = hints.get(field)
  if isinstance(kind, types.UnionType):  # X | None
    kind = typing.get_args(kind)[0]
  return typing.get_origin(kind) or kind


def _parse(key: str, text: str) -> Any:
  """Reads the text of a setting as the setting's type."""
  kind = _kind(key)
  parse, wanted = _PARSERS.get(kind, (str, ""))
  try:
    return parse(text.strip() if parse is not str else text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    raise ConfigError(
      f"--config.{key}={abbreviate(text)[1:-1]}: write {wanted}"
    ) from None


def _parse_bool(text: str) -> bool:
  words = {"true": True, "t": True, "1": True}
  words |= {"false": False, "f": False, "0": False}
  if text.lower() not in words:
    raise ValueError
  return words[text.lower()]


def _parse_tuple(text: str) -> tuple:
  """Reads "8", "8,16", "(8, 16)" or "a,b"."""
  items = [item.strip() for item in text.split(",")]
  # Rows of a mask, as 0110, are no numbers either.
  if all(map(_WORD.fullmatch, items)) or any(map(_ROW.fullmatch, items)):
    return tuple(items)
  value = ast.literal_eval(text)
  # A set or a dict would lose the order or the values.
  return tuple(value) if isinstance(value, list | tuple) else (value,)


_PARSERS: dict[Any, tuple[Any, str]] = {
  int: (lambda text: int(text, 0), "a whole number"),
  float: (float, "a number"),
  bool: (_parse_bool, "true or false"),
  tuple: (_parse_tuple, "a number, or several with commas, as 8,16"),
}


def help_text() -> str:
  """Lists all settings with help text, default and bounds, for --help."""
  lines = ["settings:"]
  for name, field, rule in rules():
    default = field.default
    facts = [] if default in (dataclasses.MISSING, None) else [f"{default!r}"]
    if facts:
      facts = [f"default {facts[0]}"]
    facts += filter(None, [rule.bounds])
    if rule.resumable:
      facts.append("may change on resume")
    text = f"{rule.help} ({'; '.join(facts)})" if facts else rule.help
    lines.append(f"  --config.{name}={field.type}")
    lines += textwrap.wrap(
      text, 78, initial_indent=" " * 6, subsequent_indent=" " * 6
    )
  return "\n".join(lines)


def config_dict(config: Config) -> ml_collections.ConfigDict:
  """Makes the ConfigDict of a recipe, in which `optim.lr` follows the batch."""
  result = _to_dict(config)
  if config.optim.lr is None:
    optim = result.optim
    batch_size = result.data.get_ref("batch_size")
    # The typed placeholder does not take a reference: it is removed first.
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
      # A typed placeholder keeps the type of the setting.
      kind = typing.get_args(hints[field.name])[0]
      value = mlc.placeholder(typing.get_origin(kind) or kind)
    result[field.name] = value
  return result
