"""Describes the machine and the versions that measurements depend on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import pathlib
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence

# Instruction sets of x86 that matrix products use. Programs that use a
# processor's bfloat16 instructions are much faster than programs that do not.
_WIDE = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def about(packages: Iterable[str]) -> str:
  """Returns processor, cores, load and package versions, as part of a line."""
  versions = [f"{name} {_version(name)}" for name in packages]
  return (
    f"{os.cpu_count()} cores ({_processor()}), {platform.system()}, load "
    f"{os.getloadavg()[0]:.1f} at the end, Python {platform.python_version()}, "
    f"{', '.join(versions)}"
  )


def command(name: str, argv: Sequence[str] | None = None) -> str:
  """Returns the command line of `bench.NAME`, with `argv` or sys.argv."""
  given = sys.argv[1:] if argv is None else argv
  return shlex.join(["python", "-m", f"bench.{name}", *given])


def _processor() -> str:
  machine = platform.machine()
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:  # not Linux
    return machine
  values = {}
  for line in lines:
    key, _, value = line.partition(":")
    values[key.strip()] = value.strip()
  flags = values.get("flags", "").split()
  parts = [values.get("model name"), machine, *(x for x in _WIDE if x in flags)]
  return ", ".join(part for part in parts if part)


def _version(name: str) -> str:
  for each in (name, f"{name}-cpu"):  # such as tensorflow-cpu
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      return importlib.metadata.version(each)
  return "not installed"
