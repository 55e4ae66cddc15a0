"""The private names of JAX that this project uses are still there."""

from __future__ import annotations

import re

import jax
import jax.export
import jax.numpy as jnp
from jax._src.lib import _jax

from mae_jax.utils import jax_private
from tests.helpers import commands


def test_one_process_has_no_coordination_client():
  assert jax_private.coordination_client() is None


def test_cluster_environments_can_be_asked():
  kinds = jax_private.cluster_environments()
  assert len(kinds) == 4
  for kind in kinds:
    assert kind.is_env_present() in (True, False)
    for name in ("get_process_count", "get_process_id"):
      assert callable(getattr(kind, name))
    assert callable(kind.get_coordinator_address)


def version_of(program: bytes) -> str:
  """Returns the StableHLO version that a portable artifact names."""
  return re.search(rb"StableHLO_v([0-9.]+)", program)[1].decode()


def test_a_program_is_written_for_an_older_reader():
  def export() -> bytes:
    shape = jax.ShapeDtypeStruct((2,), jnp.float32)
    return jax.export.export(jax.jit(jnp.sin))(shape).mlir_module_serialized

  newest = version_of(export())
  with jax_private.stablehlo_version("1.10.0"):
    assert version_of(export()) == "1.10.0"
  assert version_of(export()) == newest != "1.10.0"
  assert callable(_jax.mlir.serialize_portable_artifact)


def test_nothing_else_uses_private_names():
  found = [
    str(path.relative_to(commands.ROOT))
    for path in (commands.ROOT / "mae_jax").rglob("*.py")
    if "jax._src" in path.read_text() and path.name != "jax_private.py"
  ]
  assert found == []
