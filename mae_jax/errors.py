"""What a user is told, in one line, of an error that is not the program's."""

from __future__ import annotations

import jax

from mae_jax import config as config_lib

# What TensorFlow raises, which may not be imported here.
_NO_MEMORY = "ResourceExhaustedError"


def explain(error: BaseException) -> str | None:
  """The line for an error, with its remedy; None for one of the program's.

  Settings that cannot work, memory and files are the user's to mend. Of
  anything else the traceback says more.
  """
  if isinstance(error, config_lib.ConfigError | config_lib.TrainingError):
    return str(error)
  if is_out_of_memory(error):
    return (
      f"out of memory: {_clause(str(error))}; in this order, take a smaller "
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
  if isinstance(error, jax.errors.JaxRuntimeError):
    return "RESOURCE_EXHAUSTED" in str(error)
  return isinstance(error, MemoryError) or type(error).__name__ == _NO_MEMORY


def _clause(text: str) -> str:
  """What was asked for, as XLA, NumPy or TensorFlow say it, without codes."""
  for preface in ("RESOURCE_EXHAUSTED:", "XLA:TPU compile permanent error."):
    text = text.strip().removeprefix(preface)
  first = text.strip().partition("\n")[0].rstrip(". ")
  return first[:200] or "an allocation failed"
