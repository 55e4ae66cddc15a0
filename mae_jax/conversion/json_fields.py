"""Checked reading of the JSON files that other programs write beside weights.

A value of the wrong type raises an error with its file and key.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError


def read(path: pathlib.Path) -> Any:
  """Reads a JSON file."""
  try:
    return json.loads(path.read_text())
  except (ValueError, RecursionError) as error:
    raise ConfigError(
      f"{path} is not JSON ({console.first_line(error)}): download it again"
    ) from error


def number(content: Mapping[str, Any], key: str, path: pathlib.Path) -> float:
  """Returns a value that must be a number."""
  value = content[key]
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise _wrong_type(path, key, value, "a number")
  return float(value)


def numbers(
  content: Mapping[str, Any], key: str, path: pathlib.Path
) -> tuple[float, ...]:
  """Returns a value that must be a number or a list of numbers."""
  value = content[key]
  values = value if isinstance(value, list) else [value]
  if not values or not all(type(each) in (int, float) for each in values):
    raise _wrong_type(path, key, value, "a number or a list of numbers")
  return tuple(map(float, values))


def mapping(
  content: Mapping[str, Any], key: str, path: pathlib.Path
) -> Mapping[str, Any]:
  """Returns a value that must be an object; empty if the key is missing."""
  value = content.get(key) or {}
  if not isinstance(value, dict):
    raise _wrong_type(path, key, value, "an object {...}")
  return value


def _wrong_type(
  path: pathlib.Path, key: str, value: Any, kind: str
) -> ConfigError:
  return ConfigError(
    f"{path} has {key}={repr(value)[:80]}, which is not {kind}: download it "
    "again, or correct it"
  )
