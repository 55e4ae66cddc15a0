"""Logs metrics: a progress bar, throughput, and records for every sink.

Only one process writes; the Writer of the others does nothing.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from mae_jax.train.sinks import Sink, json_lines
from mae_jax.train.sinks.callback import Callback, OnMetrics
from mae_jax.train.sinks.json_lines import JsonLines
from mae_jax.train.sinks.tensorboard import TensorBoard
from mae_jax.utils import console, hardware, startup

# Fields that depend on the clock: they differ in a resumed run.
TIMING = (
  "eval_seconds",
  "images_per_second",
  "images_per_second_per_device",
  "mfu",
  "seconds",
  "start_seconds",
  *(f"start_{part}" for part in startup.PARTS),
  "timestamp",
)


class Writer:
  """Writes scalars, images and progress of a run.

  Attributes:
    path: path of `metrics.jsonl`, one JSON object a line: the step, then
      scalars.
    evaluations: the records of evaluations until the first step.
  """

  def __init__(
    self,
    workdir: epath.PathLike,
    *,
    start_step: int,
    total_steps: int,
    enabled: bool = True,
    open_trackers: Callable[[], list[Sink]] = list,
    on_metrics: OnMetrics | None = None,
  ):
    """Opens the logs and removes records later than `start_step`.

    Args:
      workdir: directory of the run.
      start_step: steps already taken, 0 for a new run.
      total_steps: the last step of the run.
      enabled: whether this process writes.
      open_trackers: makes further sinks, after the files are open, if there
        is a step to take.
      on_metrics: called with each record, after it is written.

    Raises:
      ConfigError: if the log of an earlier run cannot be read, or a tracker
        cannot start.
      OSError: if the logs cannot be written.
    """
    self._enabled = enabled
    workdir = epath.Path(workdir)
    self.path = workdir / json_lines.NAME
    self.evaluations: list[dict[str, Any]] = []
    if not enabled:
      return
    lines = JsonLines(workdir, start_step)
    board = TensorBoard(workdir / "tensorboard", start_step)
    self.evaluations = lines.evaluations
    self._files = (lines, board)
    self._sinks: list[Sink] = [*self._files]
    if start_step < total_steps:
      self._sinks += open_trackers()
    if on_metrics is not None:  # last, since it may raise
      self._sinks.append(Callback(on_metrics))
    self._failing = False
    self._step, self._total = start_step, total_steps
    self._bar = console.progress_bar(
      total_steps, "step", initial=start_step, smoothing=0.05
    )
    self._moved = False

  def advance(self) -> None:
    """Moves the progress bar by a step."""
    if self._enabled:
      if not self._moved:  # the estimate of the time left ignores compiling
        self._bar.unpause()
        self._moved = True
      self._step += 1
      self._bar.update()

  def say(self, text: str) -> None:
    """Prints a line without breaking the bar."""
    if self._enabled:
      console.info(text)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Logs scalars of a step everywhere and shows the first on the bar."""
    if not self._enabled:
      return
    known = {key: float(value) for key, value in values.items()}
    if "loss" in known:
      self._bar.set_postfix(
        loss=f"{known['loss']:.4f}",
        images_per_s=f"{known.get('images_per_second', 0):.0f}",
        refresh=False,
      )
    for sink in self._sinks:
      sink.scalars(step, known)
      self._check_files()

  def image(self, step: int, name: str, pixels: np.ndarray) -> None:
    """Logs a picture: [H, W, 3] uint8."""
    if self._enabled:
      for sink in self._sinks:
        sink.image(step, name, pixels)
      self._check_files()

  def flush(self) -> None:
    """Writes all pending records to disk.

    Raises:
      OSError: if that fails; the records stay in memory.
    """
    if self._enabled:
      for sink in self._sinks:
        sink.flush()

  def end(self) -> None:
    """Makes the current step the last one."""
    self._total = self._step

  def abandon(self) -> None:
    """Stops writing: another run owns the logs now."""
    if self._enabled:
      for sink in self._sinks:
        sink.abandon()

  def close(self) -> None:
    """Writes pending records if possible, and closes the bar."""
    if self._enabled:
      self._bar.close()
      for sink in self._sinks:
        sink.close(finished=self._step >= self._total)

  def _check_files(self) -> None:
    """Warns when writing starts to fail, and when it works again."""
    error = next(filter(None, (file.error for file in self._files)), None)
    if error is not None and not self._failing:
      console.warn(f"logs wait in memory, because writing failed: {error}")
    elif error is None and self._failing:
      console.warn("the logs are written again; no line is missing")
    self._failing = error is not None


class Meter:
  """Throughput of the training steps, without the first, which compiles.

  Attributes:
    compile_seconds: time from the start to the end of the first step.
    seconds: time spent in the other steps, up to the last reading.
  """

  def __init__(
    self, devices: np.ndarray, batch_size: int, flops_per_image: int
  ):
    """Starts the clock.

    Args:
      devices: JAX devices, all of one kind.
      batch_size: images a step, over all devices.
      flops_per_image: flops of a train step.
    """
    self._peak = hardware.peak_flops(devices.flat[0])
    self._batch, self._devices = batch_size, devices.size
    self._flops = flops_per_image
    self._created = time.monotonic()
    self._since: float | None = None
    self._steps = 0
    self.compile_seconds = 0.0
    self.seconds = 0.0

  def tick(self, values: Any) -> None:
    """Counts a step."""
    if self._since is None:
      jax.block_until_ready(values)
      self._since = time.monotonic()
      self.compile_seconds = self._since - self._created
    else:
      self._steps += 1

  @contextlib.contextmanager
  def paused(self, values: Any) -> Iterator[None]:
    """Waits for pending steps, and does not count the time of the block."""
    jax.block_until_ready(values)
    begin = time.monotonic()
    yield
    if self._since is not None:
      self._since += time.monotonic() - begin

  def read(self) -> dict[str, float]:
    """Returns rates since the last reading; {} if there was no step."""
    if self._since is None or not self._steps:
      return {}
    now = time.monotonic()
    seconds = now - self._since
    self.seconds += seconds
    rate = self._steps * self._batch / seconds
    self._since, self._steps = now, 0
    rates = {
      "images_per_second": rate,
      "images_per_second_per_device": rate / self._devices,
      "seconds": self.seconds,
    }
    if self._peak:
      rates["mfu"] = rate * self._flops / (self._peak * self._devices)
    return rates
