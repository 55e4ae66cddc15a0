"""Checks a config's types, bounds and names."""

import dataclasses
import difflib
import math
import operator
import os
import types
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from mae_jax.config.schema import (
  BOUNDS,
  RULES,
  SECTIONS,
  Config,
  Duration,
  EvalConfig,
  current,
  rule_of,
)
from mae_jax.utils.errors import ConfigError, abbreviate, printable

# Of settings without an `le` of their own: JAX counts in int32, derives the
# same key from seeds that differ in higher bits alone, and computes in float32.
LARGEST_INT = 2**31 - 1
LARGEST_FLOAT = 3e38


def current_setting(name: str, value: Any = None) -> tuple[str, Any]:
  """Translates a setting of version 0.1.

  Args:
    name: full name, as "adversary.judges"; today's names stay.
    value: its value; None if only the name is wanted.

  Returns:
    Today's full name and value.
  """
  section, dot, key = name.rpartition(".")
  section, _ = current(Config, section, None)
  kind = SECTIONS.get(section) if dot else Config
  if kind is not None:
    key, value = current(kind, key, value)
  return section + dot + key, value


def from_config_dict(
  values: Mapping[str, Any], *, stored: bool = False
) -> Config:
  """Checks a ConfigDict, or a dict read from JSON, and makes a frozen Config.

  Old names of settings are understood.

  Args:
    values: the settings.
    stored: whether a run has saved them, maybe before some settings existed:
      those get `Rule.absent`.

  Raises:
    ConfigError: on an unknown or missing key, or a value of the wrong type or
      out of bounds.
  """
  if isinstance(values, ml_collections.ConfigDict):
    values = values.to_dict()
  config = _build(Config, values, "config", stored)
  _check_probes(config.eval)
  if (
    config.init_adapt
    and not config.init_from
    and config.task != "label_efficiency"
  ):
    raise ConfigError(
      "init_adapt=True adapts the checkpoint of init_from, which is not set"
    )
  train = config.train
  if train.patience and not train.keep_best:
    raise ConfigError(
      f"train.patience={train.patience} waits for a better evaluation: say by "
      "which metric, for instance train.keep_best=eval_loss"
    )
  once = Duration.parse(config.eval.every, "eval.every").amount == 0
  if train.keep_best and once:
    raise ConfigError(
      f"train.keep_best={abbreviate(train.keep_best)} compares evaluations, "
      "and there is only the last one: set eval.every, for instance to "
      "'1 epochs'"
    )
  return config


def plain(value: Any) -> Any:
  """Converts scalars of NumPy and paths to what JSON holds."""
  if isinstance(value, np.generic):
    return value.item()
  return os.fspath(value) if isinstance(value, os.PathLike) else value


def one_of(key: str, value: str, known: typing.Collection[str]) -> str:
  """Returns a config argument that must be one of a few words.

  Raises:
    ConfigError: if it is not.
  """
  if value not in known:
    raise ConfigError(
      f"config argument {key}={value!r} is not known: use {' or '.join(known)}"
    )
  return value


def nearest(name: str, known: typing.Iterable[str]) -> str:
  """Suggests the known name that is most like `name`, or lists the first 50."""
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=1)
  if close:
    return f"did you mean {close[0]!r}?"
  more = f" and {len(known) - 50} more" if len(known) > 50 else ""
  return f"known are {', '.join(known[:50])}{more}"


def check_name(known: typing.Collection[str], name: str, field: str) -> None:
  """Checks that a name is known.

  Raises:
    ConfigError: with the nearest name and all others.
  """
  if isinstance(name, str) and name in known:
    return
  every = f"known are {', '.join(sorted(known))}"
  hint = nearest(name, known) if isinstance(name, str) else every
  if hint != every:  # the nearest name may be the opposite of the wanted one
    hint += f" {every}"
  raise ConfigError(f"{field}={abbreviate(name)} is not known: {hint}")


def lookup(table: Mapping[str, Any], name: str, field: str) -> Any:
  """Returns `table[name]`.

  Raises:
    ConfigError: if there is no such name; it lists all names.
  """
  check_name(table, name, field)
  return table[name]


def check_key(key: str) -> None:
  """Checks that there is a setting of this full name.

  Raises:
    ConfigError: with the nearest name.
  """
  kind: Any = Config
  path = "config"
  for name in key.split("."):
    if not dataclasses.is_dataclass(kind):
      raise ConfigError(
        f"config.{printable(key)} is not known: set the whole {path}"
      )
    hints = typing.get_type_hints(kind)
    if name not in hints:
      raise ConfigError(
        f"{path}.{printable(name)} is not known: {_suggest(name, hints)}"
      )
    kind, path = hints[name], f"{path}.{name}"
  if dataclasses.is_dataclass(kind):
    one = dataclasses.fields(kind)[0].name
    raise ConfigError(
      f"{path} is a section: set what is in it, for instance {path}.{one}"
    )


def _suggest(name: Any, known: typing.Iterable[str]) -> str:
  """Suggests the same name in another section, or the nearest name."""
  for section, kind in typing.get_type_hints(Config).items():
    if name in getattr(kind, "__dataclass_fields__", ()):
      return f"did you mean 'config.{section}.{name}'?"
  return nearest(str(name), known)


def _build(
  cls: type, values: Mapping[str, Any], path: str, stored: bool
) -> Any:
  hints = typing.get_type_hints(cls)
  fields = {field.name: field for field in dataclasses.fields(cls)}
  if not isinstance(values, Mapping):
    raise ConfigError(
      f"{path}={abbreviate(values)} is not a section of settings"
    )
  values = dict(current(cls, *item) for item in values.items())
  for key in values:
    if key not in fields:
      raise ConfigError(
        f"{path}.{printable(str(key))} is not known: {_suggest(key, fields)}"
      )
  built = {}
  for name, field in fields.items():
    here = f"{path}.{name}"
    if name not in values:
      if field.default is field.default_factory is dataclasses.MISSING:
        raise ConfigError(f"{here} is missing: set it in the config file")
      if stored and (absent := rule_of(field).absent) is not None:
        built[name] = absent
      continue
    kind, value = hints[name], values[name]
    if dataclasses.is_dataclass(kind):
      built[name] = _build(typing.cast(type, kind), value, here, stored)
    else:
      built[name] = _convert(kind, value, here)
      _check_rule(here.removeprefix("config."), built[name])
  return cls(**built)


def _check_rule(name: str, value: Any) -> None:
  rule = RULES[name]
  if rule.duration:
    Duration.parse(value, name)
  for item in value if isinstance(value, tuple) else (value,):
    if item is None:
      continue
    if isinstance(item, str):
      if why := dict(rule.refused).get(item):
        raise ConfigError(f"{name}={item} is not offered: {why}")
      if rule.choices:
        check_name(rule.choices, item, name)
      continue
    if isinstance(item, float) and not math.isfinite(item):
      raise ConfigError(
        f"config.{name}={abbreviate(value)} is not a finite number"
      )
    largest = LARGEST_FLOAT if isinstance(item, float) else LARGEST_INT
    bounds = {"ge": -largest, "le": largest} | {
      key: bound for key in BOUNDS if (bound := getattr(rule, key)) is not None
    }
    for key, words in BOUNDS.items():
      if key in bounds and not getattr(operator, key)(item, bounds[key]):
        raise ConfigError(
          f"config.{name}={abbreviate(value)} must be {words} {bounds[key]}"
        )


def _check_probes(settings: EvalConfig) -> None:
  # A probe needs two classes, and one image has one class.
  if settings.max_train == 1:
    raise ConfigError(
      "eval.max_train=1 lets a probe see one image and so one class: set it to "
      "at least 2, or to 0 for all"
    )


def _convert(kind: Any, value: Any, path: str) -> Any:
  """Converts a value to its declared type: 1 to 1.0, lists to tuples."""
  value = plain(value)
  if isinstance(kind, types.UnionType):  # X | None
    return None if value is None else _convert(kind.__args__[0], value, path)
  if typing.get_origin(kind) is tuple:
    item, *rest = typing.get_args(kind)
    items = tuple(value) if isinstance(value, list | tuple) else (value,)
    if item is str:  # 1010,1111 on a command line are numbers
      items = tuple(str(x) if type(x) is int else x for x in items)
    if Ellipsis not in rest:
      wanted = 1 + len(rest)
      items = items * wanted if len(items) == 1 else items
      if len(items) != wanted:
        raise ConfigError(
          f"{path}={abbreviate(value)} must have {wanted} items"
        )
    return tuple(_convert(item, each, path) for each in items)
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    # A whole number may be too large for a float, but not for a message.
    value = float(value) if abs(value) < 2**1023 else math.inf
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise ConfigError(
      f"{path}={abbreviate(value)} is a {type(value).__name__}, not a "
      f"{kind.__name__}"
    )
  return value
