"""Evaluates a checkpoint: `--config.task=evaluate`.

Measures the checkpoint `init_from` on any data, and writes the results to the
workdir: `evaluation.json`, and tables as CSV.
"""

import json
import math
import os
from collections.abc import Callable
from typing import Any, Protocol

import jax
from etils import epath
from jax.sharding import Mesh

from mae_jax.checkpoints import workdir as workdirs
from mae_jax.config import Config, EvalConfig, lookup
from mae_jax.distributed import sharding
from mae_jax.evals import load_model, partial_results, results, robustness
from mae_jax.utils import console, signals, storage

_RESULT = "evaluation.json"
_PARTIAL_RESULTS = "evaluation.parts.json"


class Measure(Protocol):
  """A measure of a checkpoint; its constructor checks all settings."""

  @property
  def about(self) -> str:
    """The checkpoint, the images and the measure, for messages."""

  def __call__(
    self, partial: partial_results.PartialResults
  ) -> results.EvalResult:
    """Does the long work, except for parts that are done in `partial`."""


# Imports TensorFlow only when images are needed.
def _head(config: Config, mesh: Mesh) -> Measure:
  from mae_jax.evals import measures

  kind = (
    measures.CorruptionErrors
    if robustness.is_all_corruptions(config.data)
    else measures.HeadAccuracy
  )
  return kind(config, mesh)


def _features(config: Config, mesh: Mesh) -> Measure:
  from mae_jax.evals import measures

  return measures.FeatureProbes(config, mesh)


# By eval.measure.
MEASURES: dict[str, Callable[[Config, Mesh], Measure]] = {
  "head": _head,
  "features": _features,
}


def run(config: Config, workdir: str, stop: signals.StopSignals) -> None:
  """Evaluates, prints and writes results.

  Args:
    config: `init_from` is the checkpoint, `data` the images, `eval` the
      measure.
    workdir: the output directory; may be the checkpoint's workdir.
    stop: signals that ask the run to stop.

  Raises:
    ConfigError: before the long work, if settings, checkpoint or images do not
      fit together.
    RunInterrupted: if a signal asked to stop; only finished parts are saved.
  """
  make = lookup(MEASURES, config.eval.measure, "eval.measure")
  mesh = sharding.make_mesh(config.mesh)
  sharding.check_batch(mesh, config.data.batch_size, "data.batch_size")
  load_model.locate(config)
  measure = make(config, mesh)
  first = jax.process_index() == 0
  with workdirs.hold(workdir, owner=first) as held:
    if first:
      if note := robustness.note(config.data):
        console.warn(note)
      console.info(f"evaluating {measure.about}")
    partial = partial_results.PartialResults(
      held.path / _PARTIAL_RESULTS, held.check, owner=first
    )
    try:
      with stop.interruptible(), jax.set_mesh(mesh):
        found = measure(partial)
    except signals.RunInterrupted:
      parts = "no result is saved: the same command starts it again"
      if partial.done:
        parts = (
          f"{len(partial.done)} parts are saved: the same command resumes from "
          "there"
        )
      raise signals.RunInterrupted(f"evaluation interrupted; {parts}") from None
    if first:
      console.info(found.text)
      held.check()
      with storage.os_errors(held.path):
        _write(held.path, found, config.eval)
        partial.delete()
      console.info(
        f"written to {held.path}: {', '.join([*found.files, _RESULT])}"
      )


def _write(
  directory: epath.Path, found: results.EvalResult, settings: EvalConfig
) -> None:
  for name in _earlier(directory).difference(found.files):
    (directory / name).unlink(missing_ok=True)
  for name, table in found.files.items():
    storage.write_atomic(directory / name, table)
  # Written last: its presence means that the other files are complete.
  content: dict[str, Any] = {
    "measure": settings.measure,
    **found.info,
    "files": list(found.files),
    # JSON has no NaN.
    "scalars": {
      name: value if math.isfinite(value) else None
      for name, value in found.scalars.items()
    },
  }
  text = json.dumps(content, indent=2) + "\n"
  storage.write_atomic(directory / _RESULT, text.encode())


def _earlier(directory: epath.Path) -> set[str]:
  """Returns the files of an earlier evaluation here, besides _RESULT."""
  try:
    content = json.loads((directory / _RESULT).read_bytes())
    return {os.path.basename(name) for name in content["files"]}
  except (OSError, ValueError, KeyError, TypeError):
    return set()
