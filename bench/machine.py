"""What figures depend on besides the program: the machine and the versions."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Iterable

# What products are made with, of what x86 has: the bfloat16 of some makes all
# the difference between programs that use it and those that do not.
_WIDE = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


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
  told = {}
  for line in lines:
    key, _, value = line.partition(":")
    told[key.strip()] = value.strip()
  flags = told.get("flags", "").split()
  parts = [told.get("model name"), machine, *(x for x in _WIDE if x in flags)]
  return ", ".join(part for part in parts if part)


def _version(name: str) -> str:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    pass
  try:
    return importlib.metadata.version(f"{name}-cpu")  # TensorFlow on x86
  except importlib.metadata.PackageNotFoundError:
    return "not installed"
