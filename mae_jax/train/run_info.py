"""Describes how and where a run was started, in a file beside its logs."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from mae_jax.config import Config, overrides, to_dict
from mae_jax.utils import storage
from mae_jax.utils.errors import ConfigError

FILE = "about.json"
_PACKAGES = (
  "mae_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow",
  "tensorflow-cpu", "tensorflow-datasets", "numpy", "libtpu",
)  # fmt: skip


def write_run_info(
  workdir: epath.Path,
  config: Config,
  mesh: Mesh,
  total_steps: int,
  num_params: int,
) -> None:
  """Writes FILE, replacing that of an earlier start.

  Raises:
    OSError: if the file cannot be written.
  """
  device = mesh.devices.flat[0]
  content = {
    "started": datetime.datetime.now()
    .astimezone()
    .isoformat(timespec="seconds"),
    "command": sys.argv,
    "recipe": _recipe(sys.argv),
    "config": to_dict(config),
    "total_steps": total_steps,
    "num_params": num_params,
    "devices": f"{mesh.size} x {device.device_kind} ({device.platform})",
    "processes": jax.process_count(),
    "host": platform.node(),
    "system": platform.platform(),
    "cores": os.cpu_count(),
    "python": platform.python_version(),
    "packages": {name: text for name in _PACKAGES if (text := _version(name))},
  }
  text = json.dumps(content, indent=2) + "\n"
  storage.write_atomic(workdir / FILE, text.encode())


def read(workdir: epath.Path) -> dict[str, Any]:
  """Reads FILE; returns {} if there is none that can be read."""
  try:
    with storage.os_errors(workdir):
      content = json.loads((workdir / FILE).read_bytes())
  except (OSError, ValueError):
    return {}
  if not isinstance(content, dict):
    return {}
  packages = content.get("packages", {})
  return content if isinstance(packages, dict) else {}


def _recipe(argv: Sequence[str]) -> str | None:
  """Returns the recipe with an absolute path and its arguments."""
  text = overrides.recipe_of(argv)
  if text is None:
    return None
  with contextlib.suppress(ConfigError):  # the file was deleted since
    text = overrides.find_recipe(text)
  path, colon, argument = text.partition(":")
  return f"{os.path.abspath(path)}{colon}{argument}"


def _version(name: str) -> str:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return ""
