"""What processes must have been given alike, and are asked about beforehand.

Devices would not notice: steps of one shape with two seeds or rates train on
what nobody asked for, and one save more than the others have waits for ever.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mae_jax.config import Config, leaves
from mae_jax.distributed import processes
from mae_jax.utils.errors import ConfigError

# What only says where a host has things, or how many.
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
  """All processes must come to it.

  Raises:
    ConfigError: on all of them, if settings differ.
  """
  mine = {
    name: value for name, value in leaves(config) if name not in MAY_DIFFER
  }
  if found := _first_difference(mine):
    raise ConfigError(
      f"the processes have other settings: {found}: start the same command on "
      "all hosts, with the same recipes"
    )


def check_same_data(
  split: str, identity: Mapping[str, int | str] | None
) -> None:
  """Likewise, of the images of a split; None if there are none.

  Raises:
    ConfigError: on all processes, if they see others.
  """
  mine = {"identity": None} if identity is None else dict(identity)
  if found := _first_difference(mine):
    raise ConfigError(
      f"the processes see other images for {split}: {found}: each host must "
      "have all of them, and the same ones"
    )


def _first_difference(mine: Mapping[str, Any]) -> str:
  """What differs between process 0 and the first that is unlike it."""
  if processes.single_process():
    return ""
  first, *others = map(json.loads, processes.gather(json.dumps(mine)))
  for number, other in enumerate(others, 1):
    unlike = [
      f"{name} is {first.get(name)!r} on process 0 and {other.get(name)!r} on "
      f"process {number}"
      for name in sorted({*first, *other})
      if first.get(name) != other.get(name)
    ]
    if unlike:
      more = f", and {len(unlike) - 3} more" if len(unlike) > 3 else ""
      return ", ".join(unlike[:3]) + more
  return ""
