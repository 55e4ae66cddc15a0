"""Peak figures of accelerators, in one table.

Sources for TPUs: the pages "System architecture" and "TPU v2" to "TPU v6e" of
Google Cloud's TPU documentation. Links of v2 and v3: Jouppi et al. 2020, "A
domain-specific supercomputer for training deep neural networks"; links of v4:
Jouppi et al. 2023 (arXiv 2304.01433). A JAX device of v2 or v3 is one of the
chip's two cores, with half of the chip's figures.

Sources for GPUs: NVIDIA's data sheets of A100 and H100 (SXM), without sparsity.

Documented interconnect speeds are often the sum of both directions; then a chip
can send at half the speed.
"""

import dataclasses

import jax

GB, GIB = 10**9, 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """The figures of one JAX device.

  Attributes:
    flops: peak FLOP/s of dense bfloat16 products.
    hbm_bytes: size of the device memory.
    hbm_bandwidth: bytes per second to and from the device memory.
    send_bandwidth: bytes per second to neighbors, over all links together.
    torus: number of dimensions of the links' torus; 0 for a switch.
    network_bandwidth: bytes per second to hosts that the links do not reach.
      For a DGX this is a device's share of the network cards. 0 if the links
      reach all hosts.
  """

  flops: float
  hbm_bytes: int
  hbm_bandwidth: float
  send_bandwidth: float
  torus: int
  network_bandwidth: float = 0.0


_V5P = Chip(459e12, 95 * GIB, 2765e9, 600e9, 3)

# By `device.device_kind`, JAX's name of a device.
CHIPS = {
  "TPU v2": Chip(22.5e12, 8 * GIB, 350e9, 124e9, 2),
  "TPU v3": Chip(61.5e12, 16 * GIB, 450e9, 164e9, 2),
  "TPU v4": Chip(275e12, 32 * GIB, 1200e9, 300e9, 3),
  "TPU v5 lite": Chip(197e12, 16 * GIB, 819e9, 200e9, 2),
  "TPU v5": _V5P,
  "TPU v5p": _V5P,
  "TPU v6 lite": Chip(918e12, 32 * GIB, 1638e9, 400e9, 2),
  "NVIDIA A100-SXM4-40GB": Chip(312e12, 40 * GB, 1555e9, 300e9, 0, 25e9),
  "NVIDIA A100-SXM4-80GB": Chip(312e12, 80 * GB, 2039e9, 300e9, 0, 25e9),
  "NVIDIA H100 80GB HBM3": Chip(989e12, 80 * GB, 3350e9, 450e9, 0, 50e9),
}


def peak_flops(device: jax.Device) -> float | None:
  """Returns the peak bfloat16 FLOP/s of a device; None if unknown, as a CPU."""
  found = CHIPS.get(device.device_kind)
  return found.flops if found else None


def slow_dtype(device: jax.Device, dtype: str) -> str:
  """Explains that a device has no products of a type; "" if it has, or may.

  Args:
    device: any device of the run.
    dtype: as `model.dtype`.
  """
  if dtype != "bfloat16":
    return ""
  name = ""
  if device.platform == "cpu":
    name = "XLA has no bfloat16 products on CPUs"
  elif device.platform == "gpu":
    version = str(getattr(device, "compute_capability", ""))
    if version.partition(".")[0].isdigit() and float(version) < 8:
      name = f"{device.device_kind} has no bfloat16 products"
  return name and f"{name}: --config.model.dtype=float32 is faster here"
