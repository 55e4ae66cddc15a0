"""Advice on types that a device is slow at."""

from __future__ import annotations

import types

import jax
import pytest

from mae_jax.utils import hardware


def gpu(name: str, version: str) -> types.SimpleNamespace:
  return types.SimpleNamespace(
    platform="gpu", device_kind=name, compute_capability=version
  )


@pytest.mark.parametrize(
  ("device", "dtype", "advice"),
  [
    (jax.devices()[0], "bfloat16", "XLA has no bfloat16 products on CPUs: "),
    (jax.devices()[0], "float32", ""),
    (gpu("Tesla T4", "7.5"), "bfloat16", "Tesla T4 has no bfloat16 products: "),
    (gpu("Tesla T4", "7.5"), "float32", ""),
    (gpu("NVIDIA A100", "8.0"), "bfloat16", ""),
    (gpu("NVIDIA B200", "10.0"), "bfloat16", ""),
    (gpu("gfx942", ""), "bfloat16", ""),
    (types.SimpleNamespace(platform="tpu"), "bfloat16", ""),
  ],
)
def test_a_device_without_bfloat16_is_named(device, dtype, advice):
  found = hardware.slow_dtype(device, dtype)
  end = "--config.model.dtype=float32 is faster here" if advice else ""
  assert found == advice + end
