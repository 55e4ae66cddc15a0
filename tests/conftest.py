"""Every test runs on eight CPU devices; nothing may have used JAX before."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import torch

jax.config.update("jax_num_cpu_devices", 8)
torch.set_num_threads(1)
