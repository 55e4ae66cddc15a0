"""What chips can do: the one table of their figures.

TPU: the pages "System architecture" and "TPU v2" to "TPU v6e" of Google Cloud's
TPU documentation; links of v2 and v3, Jouppi et al. 2020, "A domain-specific
supercomputer for training deep neural networks", of v4 the same authors in 2023
(arXiv 2304.01433). A device of v2 and v3 is one of a chip's two cores, and has
half of what the chip has. GPU: NVIDIA's data sheets of A100 and H100 (SXM),
without sparsity. Documented interconnects are often the sum of both directions,
of which a chip can send half.
"""

from __future__ import annotations

import dataclasses

import jax

GB, GIB = 10**9, 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """The figures of one JAX device.

  Attributes:
    flops: a second, dense bfloat16 products.
    hbm_bytes: of main memory.
    hbm_bandwidth: bytes a second, to and from it.
    send_bandwidth: bytes a second to its neighbors, over all links together.
    torus: dimensions of the torus in which the links are; 0 for a switch.
    network_bandwidth: bytes a second to other hosts, where links do not go; of
      a DGX, its network cards shared out. 0 where links go everywhere.
  """

  flops: float
  hbm_bytes: int
  hbm_bandwidth: float
  send_bandwidth: float
  torus: int
  network_bandwidth: float = 0.0


_V5P = Chip(459e12, 95 * GIB, 2765e9, 600e9, 3)

# By the name JAX gives a device (`device.device_kind`).
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


def chip(device: jax.Device) -> Chip | None:
  """The figures of a device, or None where they are not known (any CPU)."""
  return CHIPS.get(device.device_kind)


def peak_flops(device: jax.Device) -> float | None:
  """Peak bfloat16 FLOP/s, or None likewise."""
  found = chip(device)
  return found.flops if found else None
