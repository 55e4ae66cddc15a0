"""What chips can do, by the name JAX gives them (`device.device_kind`)."""

from __future__ import annotations

import jax

# Peak dense bfloat16 FLOP/s of one JAX device. TPU: "System architecture" pages
# of Google Cloud's TPU documentation (a v2 or v3 device is one of two cores);
# GPU: NVIDIA's data sheets, without sparsity.
PEAK_BF16_FLOPS = {
  "TPU v2": 22.5e12,
  "TPU v3": 61.5e12,
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5": 459e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
  "NVIDIA A100-SXM4-40GB": 312e12,
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA H100 80GB HBM3": 989e12,
}


def peak_flops(device: jax.Device) -> float | None:
  """Peak bfloat16 FLOP/s, or None where it is not known (any CPU)."""
  return PEAK_BF16_FLOPS.get(device.device_kind)
