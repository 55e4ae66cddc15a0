"""What others say beside their weights, as JSON: read with care.

A value that is not of its kind is an error with its file and key.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError


def read(path: pathlib.Path) -> Any:
  """The content of a file.

  Raises:
    ConfigError: if it is no JSON.
  """
  try:
    return json.loads(path.read_text())
  except (ValueError, RecursionError) as error:
    raise ConfigError(
      f"{path} is no JSON ({console.first_line(error)}): fetch it again"
    ) from error


def number(content: Mapping[str, Any], key: str, path: pathlib.Path) -> float:
  """A value that is a number.

  Raises:
    ConfigError: if it is not.
  """
  value = content[key]
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise _wrong(path, key, value, "a number")
  return float(value)


def numbers(
  content: Mapping[str, Any], key: str, path: pathlib.Path
) -> tuple[float, ...]:
  """Likewise, one or a list of them."""
  value = content[key]
  values = value if isinstance(value, list) else [value]
  if not values or not all(type(each) in (int, float) for each in values):
    raise _wrong(path, key, value, "a number, or a list of them")
  return tuple(map(float, values))


def mapping(
  content: Mapping[str, Any], key: str, path: pathlib.Path
) -> Mapping[str, Any]:
  """A value that is an object; empty if it is not there."""
  value = content.get(key) or {}
  if not isinstance(value, dict):
    raise _wrong(path, key, value, "an object {...}")
  return value


def _wrong(path: pathlib.Path, key: str, value: Any, kind: str) -> ConfigError:
  return ConfigError(
    f"{path} has {key}={repr(value)[:80]}, which is not {kind}: fetch it "
    "again, or mend it"
  )
