"""What figures depend on besides the program: the machine and the versions."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Iterable


def about(packages: Iterable[str]) -> str:
  """Processor, cores, load, and versions of packages, as part of a line."""
  versions = [f"{name} {_version(name)}" for name in packages]
  return (
    f"{os.cpu_count()} cores ({_processor()}), {platform.system()}, load "
    f"{os.getloadavg()[0]:.1f} at the end, Python {platform.python_version()}, "
    f"{', '.join(versions)}"
  )


def _processor() -> str:
  machine = platform.machine()
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:  # elsewhere than on Linux
    return machine
  names = [line for line in lines if line.startswith("model name")]
  return (
    f"{names[0].partition(':')[2].strip()}, {machine}" if names else machine
  )


def _version(name: str) -> str:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return importlib.metadata.version(f"{name}-cpu")  # TensorFlow on x86
