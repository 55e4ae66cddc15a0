"""Evaluation on its own: `--config.task=evaluate`.

Measures the checkpoint `init_from` on any data, and writes what came out to the
workdir: `evaluation.json`, and tables as CSV.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
from etils import epath
from jax.sharding import Mesh

from mae_jax.checkpoints import workdir as workdirs
from mae_jax.config import Config, DataConfig, EvalConfig, lookup
from mae_jax.distributed import sharding
from mae_jax.evals import load_model, partial_results, results, robustness
from mae_jax.utils import console, signals, storage

_PARTS = "evaluation.parts.json"


class Measure(Protocol):
  """Something to measure; once made, it has refused what cannot work."""

  @property
  def about(self) -> str:
    """What is evaluated: what of which checkpoint, on how many images."""

  def __call__(
    self, kept: partial_results.PartialResults
  ) -> results.EvalResult:
    """Does the long work; what `kept` has of it, if it has parts, is done."""


# What needs images, and so TensorFlow, is imported when it comes to it.
def _head(config: Config, mesh: Mesh) -> Measure:
  from mae_jax.evals import measures

  kind = (
    measures.Corruptions if robustness.is_whole(config.data) else measures.Head
  )
  return kind(config, mesh)


def _features(config: Config, mesh: Mesh) -> Measure:
  from mae_jax.evals import measures

  return measures.Features(config, mesh)


# By eval.measure.
MEASURES: dict[str, Callable[[Config, Mesh], Measure]] = {
  "head": _head,
  "features": _features,
}


def run(config: Config, workdir: str, stop: signals.StopSignals) -> None:
  """Evaluates, prints and writes.

  Args:
    config: `init_from` is the checkpoint, `data` the images, `eval` says what
      is measured.
    workdir: where the files go; it may be that of the checkpoint.
    stop: signals that ask the run to stop.

  Raises:
    ConfigError: on anything that cannot work, before the long work.
    Stopped: if a signal asked for it; nothing is written but the parts that
      are done, of an evaluation that has some.
  """
  make = lookup(MEASURES, config.eval.measure, "eval.measure")
  mesh = sharding.make_mesh(config.mesh)
  sharding.check_batch(mesh, config.data.batch_size, "data.batch_size")
  load_model.locate(config)
  measure = make(config, mesh)
  first = jax.process_index() == 0
  with workdirs.hold(workdir, owner=first) as held:
    if first:
      _tell(measure, config.data)
    kept = partial_results.PartialResults(
      held.path / _PARTS, held.check, owner=first
    )
    try:
      with stop.interruptible(), jax.set_mesh(mesh):
        found = measure(kept)
    except signals.RunInterrupted:
      raise signals.RunInterrupted(_stopped(kept)) from None
    if first:
      console.info(found.text)
      held.check()
      with storage.os_errors(held.path):
        _write(held.path, found, config.eval)
        kept.forget()
      console.info(f"written to {held.path}: {', '.join(_names(found))}")


def _stopped(kept: partial_results.PartialResults) -> str:
  if kept.done:
    return (
      f"stopped before the end of the evaluation, with {len(kept.done)} of its "
      "parts done: the same command goes on from there"
    )
  return (
    "stopped before the end of the evaluation, of which nothing is written: "
    "the same command starts it again"
  )


def _tell(measure: Measure, data: DataConfig) -> None:
  if note := robustness.note(data):
    console.warn(note)
  console.info(f"evaluating {measure.about}")


def _names(found: results.EvalResult) -> list[str]:
  return [*found.files, "evaluation.json"]


def _write(
  directory: epath.Path, found: results.EvalResult, settings: EvalConfig
) -> None:
  for name, table in found.files.items():
    storage.write_atomic(directory / name, table)
  # Last: where it is, the others are of the same evaluation.
  content: dict[str, Any] = {
    "measure": settings.measure,
    **found.facts,
    "files": list(found.files),
    # JSON has no NaN.
    "scalars": {
      name: value if math.isfinite(value) else None
      for name, value in found.scalars.items()
    },
  }
  text = json.dumps(content, indent=2) + "\n"
  storage.write_atomic(directory / "evaluation.json", text.encode())
