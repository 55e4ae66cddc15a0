"""Recipes and settings of runs."""

from collections.abc import Mapping
from typing import Any

from mae_jax.api import library
from mae_jax.config import Config, overrides
from mae_jax.config.changes import replace


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
  return replace(overrides.recipe(name), changes or {})


def list_recipes() -> list[str]:
  """Lists the names of the recipes that come with the package."""
  return list(overrides.recipe_names())
