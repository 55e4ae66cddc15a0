"""The best evaluation of a run, and when to stop because none is better."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from etils import epath

from mae_jax import checkpoints, distributed
from mae_jax.config import Config
from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError, abbreviate

if TYPE_CHECKING:
  from mae_jax.train.run_data import RunData
  from mae_jax.train.tasks.base import Task


def sign(metric: str) -> int:
  """Returns -1 for metrics that are better if lower, 1 for all others."""
  return -1 if "loss" in metric else 1


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
    better = math.isfinite(value) and (
      not self.steps or sign(self.metric) * (value - self.value) > 0
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


def follow(task: Task, data: RunData, config: Config) -> BestEvaluation:
  """Checks `train.keep_best` and `train.patience`, before the first evaluation.

  Raises:
    ConfigError: if the evaluations do not have this metric.
  """
  metric, patience = config.train.keep_best, config.train.patience
  if not metric:
    return BestEvaluation(metric)
  known = task.metrics(data)
  if metric not in known:
    raise ConfigError(
      f"train.keep_best={abbreviate(metric)} is no metric of this run's "
      f"evaluations: use one of {', '.join(known)}"
      if known
      else f"train.keep_best={abbreviate(metric)}: the evaluations of this run "
      "have no metric to compare, since no image is held out"
    )
  every = task.interval(config.eval.every, "eval.every")
  count = -(-task.total_steps // every)
  if patience >= count and console.is_first():
    console.warn(
      f"train.patience={patience} cannot end this run, which has {count} "
      "evaluation(s): lower it, or eval.every"
    )
  return BestEvaluation(metric, patience)


def warn_of_kept(
  workdir: epath.Path, best: BestEvaluation, retention: checkpoints.Retention
) -> None:
  """Warns of changed settings that kept, or would have kept, checkpoints."""
  steps = checkpoints.saved_steps(workdir)
  stay = retention.stay(steps)
  lost = [step for step, each in zip(steps, stay, strict=True) if not each]
  if lost:
    names = ", ".join(map(str, lost))
    console.warn(
      f"the next save deletes the checkpoints of steps {names}, which "
      "train.keep, keep_best and keep_every no longer keep: stop this run and "
      "copy them if you need them"
    )
  if best.step is not None and best.step not in steps:
    console.warn(f"{best}, which has no checkpoint")
