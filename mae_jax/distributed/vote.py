"""A vote among processes, such as "stop now", that never blocks a train step.

Each vote is a small max-reduction over the devices, dispatched beside a train
step. Its result is read when the next step is running, long after the devices
have finished the vote.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mae_jax.distributed import sharding


class AsyncVote:
  """Computes any() over processes without blocking."""

  def __init__(self, mesh: Mesh, questions: int):
    """Prepares the reduction.

    Args:
      mesh: the devices of all processes.
      questions: number of yes-or-no questions per vote.
    """
    self._shape = (mesh.size, questions)
    self._split = sharding.batch_sharding(mesh)
    self._max = jax.jit(
      lambda votes: votes.max(axis=0), out_shardings=sharding.replicated(mesh)
    )
    self._cast: list[Any] = []

  def cast(self, *votes: bool) -> None:
    """Starts a vote with this process's answers; all processes must do so."""
    row = np.asarray(votes, np.int32)[None]
    array = jax.make_array_from_callback(
      self._shape, self._split, lambda index: row
    )
    self._cast.append(self._max(array))

  def count(self) -> tuple[bool, ...]:
    """Returns whether any process answered yes, for the vote before the last.

    All processes get the same result. Before the second vote it is all False.
    """
    if len(self._cast) < 2:
      return (False,) * self._shape[1]
    counted = jax.device_get(self._cast.pop(0))
    return tuple(bool(each) for each in counted)
