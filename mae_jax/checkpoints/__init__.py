"""Orbax checkpoints with four items: params, opt_state, loop and config.

The items are separate, so that fine-tuning reads `params` alone. Writes are
asynchronous and atomic: a step's directory appears when it is complete. Disks
fail and copies break, so each checkpoint has checksums. A checkpoint that does
not match them is set aside, and the one before it is restored.
"""

from mae_jax.checkpoints.restore import (
  ArrayReader,
  CheckpointMetadata,
  check_shapes,
  find_step,
  load_any,
  read_metadata,
  restore_newest,
  saved_steps,
)
from mae_jax.checkpoints.retention import Retention
from mae_jax.checkpoints.save import ArrayWriter, Checkpointer, run_on_all
from mae_jax.checkpoints.state import Health, TrainState

__all__ = [
  "ArrayReader",
  "ArrayWriter",
  "CheckpointMetadata",
  "Checkpointer",
  "Health",
  "Retention",
  "TrainState",
  "check_shapes",
  "find_step",
  "load_any",
  "read_metadata",
  "restore_newest",
  "run_on_all",
  "saved_steps",
]
