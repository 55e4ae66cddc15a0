"""What figures depend on besides the program: the machine and the versions."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import pathlib
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence

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


def command(name: str, argv: Sequence[str] | None = None) -> str:
  """The command line of `bench.NAME`, with these arguments or the process's."""
  given = sys.argv[1:] if argv is None else argv
  return shlex.join(["python", "-m", f"bench.{name}", *given])


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
  for each in (name, f"{name}-cpu"):  # TensorFlow on x86
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      return importlib.metadata.version(each)
  return "not installed"
