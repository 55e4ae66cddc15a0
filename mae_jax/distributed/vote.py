"""What several processes vote on while devices work: nobody waits for it.

A ballot is a program of its own beside the steps, a maximum over a few integers
of each process. It is counted when the step after it is on its way, and then
the devices have long finished it.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mae_jax.distributed import sharding


class AsyncVote:
  """Votes of all processes, which all of them count alike."""

  def __init__(self, mesh: Mesh, questions: int):
    """No votes yet.

    Args:
      mesh: the devices of all processes.
      questions: how many yes-or-no votes a ballot has.
    """
    self._shape = (mesh.size, questions)
    self._split = sharding.batch_sharding(mesh)
    self._max = jax.jit(
      lambda votes: votes.max(axis=0), out_shardings=sharding.replicated(mesh)
    )
    self._cast: list[Any] = []

  def cast(self, *votes: bool) -> None:
    """This process's votes; all processes must cast as often."""
    row = np.asarray(votes, np.int32)[None]
    array = jax.make_array_from_callback(
      self._shape, self._split, lambda index: row
    )
    self._cast.append(self._max(array))

  def count(self) -> tuple[bool, ...]:
    """Whether any process voted yes, in the ballot before the last one."""
    if len(self._cast) < 2:
      return (False,) * self._shape[1]
    counted = jax.device_get(self._cast.pop(0))
    return tuple(bool(each) for each in counted)
