"""Everything that this project uses of JAX's private modules.

These names may move with any release of JAX, so they are in one place, and
tests/utils/test_jax_private.py calls each.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock


def coordination_client() -> Any:
  """Returns the client of the coordination service, which Orbax uses too.

  It exists after `jax.distributed.initialize`.
  """
  from jax._src import distributed

  return distributed.global_state.client


def cluster_environments() -> tuple[Any, ...]:
  """Returns JAX's detectors of TPU pods, Slurm and Open MPI.

  There is no public way to ask for the number of processes without joining
  them.
  """
  from jax._src import clusters

  return (
    clusters.GkeTpuCluster,
    clusters.GceTpuCluster,
    clusters.SlurmCluster,
    clusters.OmpiCluster,
  )


@contextlib.contextmanager
def stablehlo_version(version: str) -> Iterator[None]:
  """Serializes exported programs for readers of an older StableHLO, "1.13.7".

  JAX itself writes a version that is four weeks old, which TensorFlow may not
  read yet.
  """
  from jax._src.export import _export
  from jax._src.lib import _jax

  def to_bytecode(module: Any) -> bytes:
    return _jax.mlir.serialize_portable_artifact(module, version, False)

  with mock.patch.object(_export, "_module_to_bytecode", to_bytecode):
    yield
