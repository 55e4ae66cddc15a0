"""Training: the loop, the step, optimizers, metrics, health and tasks.

The package is also the function `mae_jax.train(config, workdir)` of the Python
API. A module can be called if its class has `__call__`.
"""

import pkgutil
import sys
import types
from typing import Any


class _CallablePackage(types.ModuleType):
  """The package, which forwards calls to `mae_jax.api.runs.train`."""

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    """Trains; see `mae_jax.api.runs.train`."""
    # By name, because this layer knows nothing of the API.
    train = pkgutil.resolve_name("mae_jax.api.runs:train")
    return train(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
