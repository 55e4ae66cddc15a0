"""User errors, and the one-line messages that explain them."""

import re
import sys
from collections.abc import Iterable
from typing import Any

from mae_jax.utils import console, extras

# Raised by TensorFlow, which must not be imported here.
_NO_MEMORY = "ResourceExhaustedError"


class ConfigError(ValueError):
  """A setting that cannot work; the message names the value and the way out."""

  @property
  def setting(self) -> str | None:
    """The first setting or argument that the message names, if any."""
    text = str(self)
    found = re.search(r"\b([a-z]\w*(?:\.[a-z]\w*)*)=", text)
    found = found or re.match(
      r"(?!there\b|this\b)([a-z]\w*)(?:\[\d+\])? (?:is|has|must) ", text
    )
    return found[1].removeprefix("config.") if found else None


class TrainingError(RuntimeError):
  """An error that stops training; the message says what is saved and to do."""


def abbreviate(value: Any) -> str:
  """Returns the repr of a value for a message, truncated if long."""
  text = repr(value)
  return text if len(text) <= 200 else f"{text[:190]}..."


def printable(name: str) -> str:
  """Returns a name for a message: its repr if it is long or not one line."""
  return name if name.isprintable() and len(name) < 200 else abbreviate(name)


def missing_extra(error: BaseException) -> ConfigError | None:
  """Explains that an optional package is missing.

  Args:
    error: any error.

  Returns:
    A ConfigError that names the package and the extra that installs it. None
    for an error of another kind.
  """
  if isinstance(error, ModuleNotFoundError) and error.name:
    text = extras.describe(error.name)
    return ConfigError(text) if text else None
  return None


def require(modules: Iterable[str], extra: str = "") -> None:
  """Checks that optional packages are installed, without importing them.

  Args:
    modules: names of modules in `extras.EXTRAS`.
    extra: the extra that has them all; by default that of each package.

  Raises:
    ConfigError: for the first one that is not; it names the extra.
  """
  for name in extras.missing(modules):
    raise ConfigError(extras.describe(name, extra))


def explain(error: BaseException) -> str | None:
  """Explains an error that the user can fix, in one line with its remedy.

  Returns:
    The line for settings, missing packages, memory and files. None for any
    other error, which needs a traceback. Control characters, as in the names
    of a hostile file, are escaped.
  """
  line = _explain(missing_extra(error) or error)
  return None if line is None else console.escape(line)


def _explain(error: BaseException) -> str | None:
  if isinstance(error, ConfigError | TrainingError):
    return str(error)
  if is_out_of_memory(error):
    # The failed request as XLA, NumPy or TensorFlow describe it.
    text = str(error)
    for preface in ("RESOURCE_EXHAUSTED:", "XLA:TPU compile permanent error."):
      text = text.strip().removeprefix(preface)
    request = text.strip().partition("\n")[0].rstrip(". ")[:200]
    return (
      f"out of memory: {request or 'an allocation failed'}; in this order, try "
      "a smaller data.batch_size, or the same one with a larger "
      "optim.accum_steps; model.remat=full; more devices in mesh.fsdp"
    )
  if isinstance(error, OSError) and error.filename is not None:
    files = " -> ".join(
      str(name) for name in (error.filename, error.filename2) if name
    )
    return (
      f"{files}: {error.strerror or type(error).__name__}: check that the path "
      "is right, that it is readable and writable, and that its disk has space"
    )
  return None


def is_out_of_memory(error: BaseException) -> bool:
  """Checks for lack of memory on the host or a device, also while compiling."""
  jax = sys.modules.get("jax")  # an error of JAX implies that it is imported
  if jax and isinstance(error, jax.errors.JaxRuntimeError):
    return "RESOURCE_EXHAUSTED" in str(error)
  return isinstance(error, MemoryError) or type(error).__name__ == _NO_MEMORY
