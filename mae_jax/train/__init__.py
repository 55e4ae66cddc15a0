"""Training: the loop, the step, optimizers, metrics, health and tasks.

The package is also the function `mae_jax.train(config, workdir)` of the Python
API. A module can be called if its class has `__call__`.
"""

import importlib
import inspect
import pkgutil
import sys
import types
from typing import Any


class _CallablePackage(types.ModuleType):
  """The package, which forwards calls to `mae_jax.api.runs.train`."""

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    """Trains; see `mae_jax.api.runs.train`."""
    return _train()(*args, **kwargs)

  @property
  def __signature__(self) -> inspect.Signature:
    """The arguments, for `inspect.signature` and notebooks."""
    return inspect.signature(_train())

  def __reduce__(self) -> tuple[Any, ...]:
    """Pickles the name, so that `multiprocessing` can call the package."""
    return importlib.import_module, (__name__,)


def _train() -> Any:
  # By name, because this layer knows nothing of the API.
  return pkgutil.resolve_name("mae_jax.api.runs:train")


sys.modules[__name__].__class__ = _CallablePackage
