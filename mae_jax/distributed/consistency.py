"""Checks, at the start, that all processes have equal settings and data.

Devices would not notice a difference. With two seeds or learning rates the
steps run but train the wrong thing, and one save too many waits forever.
"""

import json
from collections.abc import Mapping
from typing import Any

from mae_jax.config import Config, leaves
from mae_jax.distributed import processes
from mae_jax.utils.errors import ConfigError

# Paths and counts that depend on the host alone.
MAY_DIFFER = (
  "data.data_dir",
  "data.max_unreadable",
  "data.path",
  "data.prefetch",
  "init_from",
  "mesh.cpu_devices",
  "train.compile_cache",
)


def check_same_settings(config: Config) -> None:
  """Compares the settings of all processes, which must all call this.

  Raises:
    ConfigError: on all processes, if settings differ.
  """
  mine = {
    name: value for name, value in leaves(config) if name not in MAY_DIFFER
  }
  if found := _first_difference(mine):
    raise ConfigError(
      f"the processes have different settings: {found}: start the same command "
      "on all hosts, with the same recipes"
    )


def check_same_data(
  split: str, identity: Mapping[str, int | str] | None
) -> None:
  """Compares the images that all processes see, which must all call this.

  Args:
    split: "train" or "eval", for the message.
    identity: of the source; None if there are no images.

  Raises:
    ConfigError: on all processes, if the images differ.
  """
  mine = {"identity": None} if identity is None else dict(identity)
  if found := _first_difference(mine):
    raise ConfigError(
      f"the processes see different images for {split}: {found}: each host "
      "must have all images, and the same ones"
    )


def _first_difference(mine: Mapping[str, Any]) -> str:
  """Describes how the first process that differs from process 0 differs."""
  if processes.single_process():
    return ""
  first, *others = map(json.loads, processes.gather(json.dumps(mine)))
  for number, other in enumerate(others, 1):
    different = [
      f"{name} is {first.get(name)!r} on process 0 and {other.get(name)!r} on "
      f"process {number}"
      for name in sorted({*first, *other})
      if first.get(name) != other.get(name)
    ]
    if different:
      more = f", and {len(different) - 3} more" if len(different) > 3 else ""
      return ", ".join(different[:3]) + more
  return ""
