"""Describes devices to compile for that need not be here.

The compilers for TPU and CUDA run on any Linux machine. The facts about the
devices that they need are in libtpu, or in a text below.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from mae_jax.utils import hardware
from mae_jax.utils.errors import ConfigError

# JAX's name of the devices of a slice.
TPUS = {
  "v3": "TPU v3",  # a device is one of two cores of a chip
  "v4": "TPU v4",
  "v5e": "TPU v5 lite",
  "v5p": "TPU v5",
  "v6e": "TPU v6 lite",
}
# Chips of a whole pod, the largest slice.
_POD = {"v3": 1024, "v4": 4096, "v5e": 256, "v5p": 8960, "v6e": 256}
GPUS = {"h100": "NVIDIA H100 80GB HBM3"}
GPUS_PER_HOST = 8
_CUDA_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
_EXAMPLES = "v5e:16x16, v5p:4x4x4, v6e:16x16 or h100:8"

# The facts about an H100 (SXM) that XLA's compiler needs: limits from NVIDIA's
# CUDA programming guide for compute capability 9.0, clocks and memory from the
# data sheet.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 80000000000
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Topology:
  """Devices to compile for.

  Attributes:
    name: the name that was asked for.
    devices: compile-only devices.
    chip: facts about one chip.
  """

  name: str
  devices: Sequence[jax.Device]
  chip: hardware.Chip


def open_topology(name: str) -> Topology:
  """Opens the compiler for a slice, such as "v5e:16x16" or "h100:8".

  Raises:
    ConfigError: if there is no such slice, or no compiler for it here.
  """
  kind, _, shape = name.partition(":")
  if kind in GPUS and re.fullmatch(r"\d+", shape) and int(shape) > 0:
    devices = _gpus(name, kind, int(shape))
    return Topology(name, devices, hardware.CHIPS[GPUS[kind]])
  if kind in TPUS and re.fullmatch(r"\d+(x\d+){1,2}", shape):
    chip = hardware.CHIPS[TPUS[kind]]
    return Topology(name, _tpus(name, kind, shape, chip.torus), chip)
  known = ", ".join([*TPUS, *GPUS])
  raise ConfigError(
    f"{name} is not a slice: write a kind of chip ({known}), a "
    f"colon, and the chips along each side or the number of GPUs: {_EXAMPLES}"
  )


def _tpus(
  name: str, kind: str, shape: str, dimensions: int
) -> Sequence[jax.Device]:
  sides = [int(side) for side in shape.split("x")]
  # libtpu also accepts shapes that Google does not offer.
  if len(sides) != dimensions:
    example = "4x4" if dimensions == 2 else "2x2x2"
    raise ConfigError(
      f"{name} is not a slice: slices of {kind} have {dimensions} sides, "
      f"for instance {kind}:{example}"
    )
  if math.prod(sides) > _POD[kind]:
    raise ConfigError(
      f"{name} has {math.prod(sides)} chips, and a pod of {kind} "
      f"{_POD[kind]}; for instance {_EXAMPLES}"
    )
  if importlib.util.find_spec("libtpu") is None:
    raise ConfigError(
      f"{name} needs the TPU compiler, which runs on any Linux "
      "machine: pip install -c constraints.txt -e '.[tpu]'"
    )
  # Neither look for a TPU, nor take the lock of its user.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  options: dict[str, Any] = {}
  if kind == "v4":  # the default of two devices a chip is refused by JAX
    options["chip_config_name"] = "megacore"
  if max(sides) == 1:  # the default is hosts of 2 x 2 chips
    options["chips_per_host_bounds"] = (1, 1, 1)
  try:
    with _quiet():
      return topologies.get_topology_desc(
        name, platform="tpu", **options
      ).devices
  except jax.errors.JaxRuntimeError as error:
    text = str(error).partition(":")[2].strip() or str(error)
    raise ConfigError(
      f"{name} is not a slice: {text}; for instance {_EXAMPLES}"
    ) from error


def _gpus(name: str, kind: str, count: int) -> Sequence[jax.Device]:
  if not any(map(importlib.util.find_spec, _CUDA_PLUGINS)):
    raise ConfigError(
      f"{name} needs the CUDA compiler: pip install -c "
      "constraints.txt -e '.[cuda13]' (some 6 GB; no GPU is needed)"
    )
  hosts, rest = divmod(count, GPUS_PER_HOST)
  if rest and hosts:
    raise ConfigError(
      f"{name}: hosts have {GPUS_PER_HOST} GPUs, so that there are "
      f"up to {GPUS_PER_HOST} or a multiple: {kind}:{hosts * GPUS_PER_HOST}"
    )
  return topologies.get_topology_desc(
    topology_name=kind,
    topology=f"1x{max(hosts, 1)}x{count if not hosts else GPUS_PER_HOST}",
    platform="cuda",
    target_config=_H100,
  ).devices


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Suppresses what C++ libraries write to standard error."""
  sys.stderr.flush()
  kept = os.dup(2)
  with open(os.devnull, "wb") as nowhere:
    os.dup2(nowhere.fileno(), 2)
  try:
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
