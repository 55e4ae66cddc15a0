"""Orbax checkpoints of separate items: params, opt_state, loop and config.

Items are separate so that a fine-tune reads `params` alone. Writes are
asynchronous and atomic: a step's directory appears when it is whole. Disks
forget and people copy, so that each checkpoint carries checksums of what it
should give back; one that does not is set aside, and the one before it used.
"""

from mae_jax.checkpoints.restore import (
  ArrayReader,
  CheckpointMetadata,
  check_shapes,
  find_step,
  load_any,
  load_params,
  read_metadata,
  restore_newest,
)
from mae_jax.checkpoints.save import ArrayWriter, Checkpointer, combined_error
from mae_jax.checkpoints.state import Health, TrainState

__all__ = [
  "ArrayReader",
  "ArrayWriter",
  "CheckpointMetadata",
  "Checkpointer",
  "Health",
  "TrainState",
  "check_shapes",
  "combined_error",
  "find_step",
  "load_any",
  "load_params",
  "read_metadata",
  "restore_newest",
]
