"""Masked autoencoders (He et al. 2021) in JAX/Flax.

    import mae_jax

    model = mae_jax.from_pretrained("digits")
    model.reconstruct("digit.png", mask_ratio=0.75)

Importing this package imports neither JAX nor TensorFlow: each name below is
imported when it is used.
"""

import importlib as _importlib
import signal as _signal
import sys as _sys
from typing import TYPE_CHECKING
from typing import Any as _Any

if TYPE_CHECKING:
  from mae_jax.api.create import create_model
  from mae_jax.api.load import from_pretrained
  from mae_jax.api.model import Model
  from mae_jax.api.names import list_models
  from mae_jax.api.recipes import list_recipes, recipe
  from mae_jax.api.results import (
    Attention,
    Features,
    LayerFeatures,
    Predictions,
    Reconstruction,
  )
  from mae_jax.api.runs import Curve, Run, train
  from mae_jax.config import Config
  from mae_jax.utils.errors import ConfigError, TrainingError

  __version__: str

__all__ = [
  "Attention",
  "Config",
  "ConfigError",
  "Curve",
  "Features",
  "LayerFeatures",
  "Model",
  "Predictions",
  "Reconstruction",
  "Run",
  "TrainingError",
  "create_model",
  "from_pretrained",
  "list_models",
  "list_recipes",
  "recipe",
  "train",
]

# The module of each public name.
_MODULES = {
  "Attention": "mae_jax.api.results",
  "Config": "mae_jax.config",
  "ConfigError": "mae_jax.utils.errors",
  "Curve": "mae_jax.api.runs",
  "Features": "mae_jax.api.results",
  "LayerFeatures": "mae_jax.api.results",
  "Model": "mae_jax.api.model",
  "Predictions": "mae_jax.api.results",
  "Reconstruction": "mae_jax.api.results",
  "Run": "mae_jax.api.runs",
  "TrainingError": "mae_jax.utils.errors",
  "create_model": "mae_jax.api.create",
  "from_pretrained": "mae_jax.api.load",
  "list_models": "mae_jax.api.names",
  "list_recipes": "mae_jax.api.recipes",
  "recipe": "mae_jax.api.recipes",
  "train": "mae_jax.train",
}


def __getattr__(name: str) -> _Any:
  """Imports a public name when it is first used (PEP 562)."""
  if name == "__version__":
    from mae_jax.utils import version

    return version.__version__
  if name not in _MODULES:
    raise AttributeError(f"module 'mae_jax' has no attribute {name!r}")
  if name == "train":  # the package of this name can be called
    return _importlib.import_module("mae_jax.train")
  value = getattr(_importlib.import_module(_MODULES[name]), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return sorted([*__all__, "__version__"])


# `python -m mae_jax...` begins: while a program imports for seconds, before it
# has handlers of its own, Ctrl-C ends it without a trace of where it was.
if (
  getattr(_sys, "argv", [])[:1] == ["-m"]
  and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler
):
  _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
