"""The best evaluation of a run, and when to stop because none is better."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from mae_jax import distributed

# Of the metrics of evaluations; of the others, higher is better.
_LOWER_IS_BETTER = ("eval_loss",)


@dataclasses.dataclass
class BestEvaluation:
  """The evaluation with the best value of one metric.

  Attributes:
    metric: a name in metrics.jsonl; "" to follow none.
    patience: number of evaluations in a row, none of them better, after which
      training ends; 0 for never.
    steps: the steps of evaluations that were the best so far.
    value: the best value.
    waited: number of evaluations since then.
  """

  metric: str
  patience: int = 0
  steps: list[int] = dataclasses.field(default_factory=list)
  value: float = math.nan
  waited: int = 0

  @property
  def step(self) -> int | None:
    """The step of the best evaluation; None before the first."""
    return self.steps[-1] if self.steps else None

  @property
  def exhausted(self) -> bool:
    """True if training should end."""
    return 0 < self.patience <= self.waited

  def resume(self, records: Iterable[Mapping[str, Any]]) -> None:
    """Takes the evaluations from the log of a run that is resumed.

    Args:
      records: the evaluations in metrics.jsonl; only those of process 0 count.
    """
    if self.metric:
      values = [(each["step"], each.get(self.metric)) for each in records]
      for step, value in distributed.from_first(values):
        self._compare(step, math.nan if value is None else value)

  def add(self, step: int, scalars: Mapping[str, float]) -> bool:
    """Compares an evaluation of this step with the best; True if it is better.

    Args:
      step: the step.
      scalars: metrics of the evaluation; only those of process 0 count.
    """
    if not self.metric:
      return False
    value = distributed.from_first(scalars.get(self.metric, math.nan))
    return self._compare(step, value)

  def _compare(self, step: int, value: float) -> bool:
    sign = -1 if self.metric in _LOWER_IS_BETTER else 1
    better = math.isfinite(value) and (
      not self.steps or sign * value > sign * self.value
    )
    if better:
      self.steps.append(step)
      self.value, self.waited = value, 0
    else:
      self.waited += 1
    return better

  def __str__(self) -> str:
    if self.step is None:
      return f"no evaluation has a finite {self.metric}"
    return f"best {self.metric}: {self.value:.4f} at step {self.step}"
