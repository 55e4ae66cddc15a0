"""Recipes and settings of runs."""

import os
from collections.abc import Mapping
from typing import Any

from mae_jax.api import library
from mae_jax.config import Config, overrides
from mae_jax.config.changes import replace
from mae_jax.utils.errors import ConfigError


@library.public
def recipe(name: str, changes: Mapping[str, Any] | None = None) -> Config:
  """Returns the settings of a recipe.

  Args:
    name: one of `list_recipes`, or the path of a file, each with arguments if
      it takes some, as "vit_l:epochs=1600".
    changes: settings to change, as in `Config.replace`.

  Raises:
    ConfigError: if there is no such recipe, or a setting cannot work.

  Example:
    >>> import mae_jax
    >>> config = mae_jax.recipe("vit_b", {"data.batch_size": 512})
    >>> config.optim.lr == config.optim.blr * 2
    True
  """
  if not isinstance(name, str | os.PathLike):
    raise ConfigError(
      f"name={name!r} is a {type(name).__name__}: use one of "
      f"{', '.join(list_recipes())}, or the path of a file"
    )
  found = overrides.recipe(os.fspath(name))
  return found if changes is None else replace(found, changes)


def list_recipes() -> list[str]:
  """Lists the names of the recipes that come with the package."""
  return list(overrides.recipe_names())
