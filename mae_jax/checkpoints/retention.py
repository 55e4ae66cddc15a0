"""A rule for the checkpoints of a run that stay."""

import dataclasses
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass
class Retention:
  """Keeps the newest checkpoints, every n-th one, and the best.

  Orbax calls it as a preservation policy.

  Attributes:
    newest: number of checkpoints that stay because they are the newest.
    every: multiples of this step stay for good; 0 for none.
    best: steps that were the best when they were saved. The last one stays,
      or if it could not be written, the one before it.
  """

  newest: int
  every: int = 0
  best: list[int] = dataclasses.field(default_factory=list)

  def stay(self, steps: Sequence[int]) -> list[bool]:
    """Decides for each of the steps, which are in ascending order."""
    old = len(steps) - self.newest
    best = max(set(self.best) & set(steps), default=None)
    return [
      number >= old
      or step == best
      or (self.every > 0 and step % self.every == 0)
      for number, step in enumerate(steps)
    ]

  def should_preserve(
    self, checkpoints: Sequence[Any], *, context: Any
  ) -> list[bool]:
    """Decides for each of Orbax's descriptions of checkpoints."""
    del context
    return self.stay([each.step for each in checkpoints])
