"""Traces of the JAX profiler for a few steps, for XProf or TensorBoard."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from mae_jax.config import TrainConfig
from mae_jax.utils import console, storage

DIRECTORY = "profile"


class Profiler:
  """A trace of the steps that `train.profile` names, on one process.

  A trace that cannot be written is a warning: training continues.
  """

  def __init__(
    self,
    settings: TrainConfig,
    workdir: epath.Path,
    total_steps: int,
    *,
    enabled: bool,
  ):
    """Reads the range; warns if the run ends before it.

    Args:
      settings: with the range of steps.
      workdir: the trace goes to WORKDIR/profile.
      total_steps: the last step of the run.
      enabled: whether this process writes a trace.
    """
    steps = settings.profiled_steps() if enabled else None
    self._first, self._last = steps or (1, 0)
    self._path = workdir / DIRECTORY
    self._local: tempfile.TemporaryDirectory | None = None
    self._active = False
    if self._last > total_steps:
      what = "nothing is traced" if self._first > total_steps else "it is cut"
      console.warn(
        f"train.profile={settings.profile}, but the last step is "
        f"{total_steps}: {what}"
      )

  def starts(self, step: int) -> bool:
    """Checks whether a trace starts before `step`, also in a resumed run."""
    return not self._active and self._first <= step <= self._last

  def ends(self, step: int) -> bool:
    """Checks whether the trace ends after `step`."""
    return self._active and step >= self._last

  def start(self) -> None:
    """Starts the trace."""
    target = str(self._path)
    if storage.is_remote(target):  # the profiler knows no buckets
      self._local = tempfile.TemporaryDirectory()
      target = self._local.name
    options = jax.profiler.ProfileOptions()
    # Calls of Python functions would hide the steps in a hundred megabytes.
    options.python_tracer_level = 0
    with self._warns():
      jax.profiler.start_trace(target, profiler_options=options)
      self._active = True

  def annotate(self, step: int) -> contextlib.AbstractContextManager[Any]:
    """Marks the block as a step, if there is a trace."""
    if not self._active:
      return contextlib.nullcontext()
    return jax.profiler.StepTraceAnnotation("train", step_num=step)

  def stop(self) -> None:
    """Writes the trace, if one has started."""
    if not self._active:
      return
    self._active = False
    with self._warns():
      jax.profiler.stop_trace()
      if self._local is not None:
        self._upload(pathlib.Path(self._local.name))
        self._local.cleanup()
      console.info(f"the trace is in {self._path}: xprof {self._path}")

  def _upload(self, folder: pathlib.Path) -> None:
    for path in folder.rglob("*"):
      if path.is_file():
        target = self._path / str(path.relative_to(folder))
        storage.write_atomic(target, path.read_bytes())

  @contextlib.contextmanager
  def _warns(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # of any type: a full disk, or another trace
      self._last = 0
      console.warn(
        f"no trace of train.profile ({type(error).__name__}: "
        f"{console.first_line(error)})"
      )
