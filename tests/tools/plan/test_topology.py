"""Tests of slices and of meshes of their devices."""

from __future__ import annotations

import importlib.util

import pytest

from mae_jax.config import MeshConfig
from mae_jax.distributed import sharding
from mae_jax.tools.plan import topology
from mae_jax.utils.errors import ConfigError


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="no TPU compiler here"
)
@pytest.mark.parametrize(
  ("name", "devices"),
  [
    ("v3:1x1", 2),  # a v3 chip has two cores
    ("v3:2x4", 16),
    ("v4:2x2x1", 4),
    ("v4:2x2x2", 8),
    ("v5p:2x2x1", 4),
    ("v5e:1x1", 1),
    ("v5e:2x4", 8),
    ("v6e:1x1", 1),
    ("v6e:4x4", 16),
  ],
)
def test_a_mesh_has_all_devices_of_a_slice(name: str, devices: int):
  where = topology.open_topology(name)
  mesh = sharding.make_mesh(MeshConfig(fsdp=devices), where.devices)
  assert mesh.size == devices


@pytest.mark.parametrize(
  ("name", "text"),
  [
    ("v5e:2x2x2", "slices of v5e have 2 sides, for instance v5e:4x4"),
    ("v4:2x2", "slices of v4 have 3 sides, for instance v4:2x2x2"),
    ("v5e:32x32", "has 1024 chips, and a pod of v5e 256"),
  ],
)
def test_slices_that_do_not_exist_are_refused(
  monkeypatch: pytest.MonkeyPatch, name: str, text: str
):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
  with pytest.raises(ConfigError, match=text):
    topology.open_topology(name)
