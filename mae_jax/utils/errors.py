"""What a user is told, in one line, of an error that is not the program's."""

from __future__ import annotations

import sys
from typing import Any

# What TensorFlow raises, which may not be imported here.
_NO_MEMORY = "ResourceExhaustedError"


class ConfigError(ValueError):
  """A setting that cannot work; the message names the value and the way out."""


class TrainingError(RuntimeError):
  """Training cannot go on; the message says what is kept and what to do."""


def abbreviate(value: Any) -> str:
  """A value in a message, cut where it is long."""
  text = repr(value)
  return text if len(text) <= 200 else f"{text[:190]}..."


def explain(error: BaseException) -> str | None:
  """The line for an error, with its remedy; None for one of the program's.

  Settings that cannot work, memory and files are the user's to mend. Of
  anything else the traceback says more.
  """
  if isinstance(error, ConfigError | TrainingError):
    return str(error)
  if is_out_of_memory(error):
    return (
      f"out of memory: {_allocation(str(error))}; in this order, take a smaller "
      "data.batch_size, or the same one with a larger optim.accum_steps; "
      "model.remat=full; more devices in mesh.fsdp"
    )
  if isinstance(error, OSError) and error.filename is not None:
    files = " -> ".join(
      str(name) for name in (error.filename, error.filename2) if name
    )
    return (
      f"{files}: {error.strerror or type(error).__name__}: see that the path "
      "is right, that it may be read and written, and that its disk has space"
    )
  return None


def is_out_of_memory(error: BaseException) -> bool:
  """Whether a device (at compile time or later) or the host has no memory."""
  jax = sys.modules.get("jax")  # whoever raised its error has imported it
  if jax and isinstance(error, jax.errors.JaxRuntimeError):
    return "RESOURCE_EXHAUSTED" in str(error)
  return isinstance(error, MemoryError) or type(error).__name__ == _NO_MEMORY


def _allocation(text: str) -> str:
  """What was asked for, as XLA, NumPy or TensorFlow say it, without codes."""
  for preface in ("RESOURCE_EXHAUSTED:", "XLA:TPU compile permanent error."):
    text = text.strip().removeprefix(preface)
  first = text.strip().partition("\n")[0].rstrip(". ")
  return first[:200] or "an allocation failed"
