"""Changes settings of a checked config."""

from collections.abc import Mapping
from typing import Any

from mae_jax.config.schema import Config, to_dict
from mae_jax.config.validate import (
  check_key,
  current_setting,
  from_config_dict,
  plain,
)
from mae_jax.utils.errors import ConfigError, abbreviate


def replace(config: Config, changes: Mapping[str, Any]) -> Config:
  """Returns a config with other settings; see `Config.replace`."""
  values = to_dict(config)
  optim = config.optim
  given = {}
  if not isinstance(changes, Mapping):
    raise ConfigError(
      f"changes={abbreviate(changes)} is a {type(changes).__name__}: give a "
      'dict of values by name, as {"data.batch_size": 256}'
    )
  for name, value in changes.items():
    if not isinstance(name, str):
      raise ConfigError(
        f"changes has the name {name!r}, which is no string: write it as "
        '"data.batch_size"'
      )
    name = name.removeprefix("--").removeprefix("config.")
    name, value = current_setting(name, plain(value))
    check_key(name)
    given[name] = value
  # The learning rate follows the batch size as long as nobody sets it.
  if (
    optim.lr == optim.blr * config.data.batch_size / 256
    and "optim.lr" not in given
  ):
    blr = given.get("optim.blr", optim.blr)
    batch_size = given.get("data.batch_size", config.data.batch_size)
    # A value of another type is reported below, by its own name.
    if isinstance(blr, int | float) and isinstance(batch_size, int | float):
      given["optim.lr"] = blr * batch_size / 256
  for name, value in given.items():
    section, _, field = name.rpartition(".")
    (values[section] if section else values)[field] = value
  return from_config_dict(values)
