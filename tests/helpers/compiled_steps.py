"""Compiled train steps on the test's own CPU devices."""

from __future__ import annotations

from typing import Any

import jax

from mae_jax.config import Config
from mae_jax.distributed import sharding
from mae_jax.tools.plan import compile_step, planned_step
from mae_jax.utils import hardware
from tests.helpers import tiny

# Arbitrary round numbers.
CHIP = hardware.Chip(1e12, 10**9, 1e11, 1e10, 2)


def config(**sections: Any) -> Config:
  """Returns a small run whose kernels eight devices can divide."""
  model = {"width": 64, "mlp_dim": 128, "decoder_width": 32, "depth": 2}
  sections["model"] = model | sections.get("model", {})
  sections.setdefault("data", {"batch_size": 64})
  return tiny.config(**sections)


def compile_settings(
  settings: Config, devices: int = 8
) -> compile_step.CompiledStep:
  """Compiles the train step of `settings` for the first devices."""
  mesh = sharding.make_mesh(settings.mesh, jax.devices()[:devices])
  planned = planned_step.planned(settings, mesh, 1000, 10)
  return compile_step.measure(planned, CHIP)
