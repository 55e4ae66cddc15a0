"""What a run tells: TensorBoard, `metrics.jsonl`, a progress bar, throughput.

Only one process writes; the others hold a Writer that does nothing.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tensorboardX
import tqdm
from etils import epath

from mae_jax import config as config_lib
from mae_jax import hardware

# Fields that depend on the clock: exempt from "resumed equals uninterrupted".
TIMING = ("images_per_second", "images_per_second_per_device", "mfu", "seconds")


class Writer:
  """Writes scalars, images and progress of a run.

  Attributes:
    path: of `metrics.jsonl`, one JSON object a line: the step, then scalars.
  """

  def __init__(
    self,
    workdir: epath.PathLike,
    *,
    start_step: int,
    total_steps: int,
    enabled: bool = True,
  ):
    """Opens the logs and cuts off what is later than `start_step`.

    Args:
      workdir: directory of the run.
      start_step: steps already taken, 0 for a new run.
      total_steps: where the run ends.
      enabled: whether this process writes.

    Raises:
      ConfigError: if the log of an earlier run cannot be read.
    """
    self._enabled = enabled
    self.path = epath.Path(workdir) / "metrics.jsonl"
    if not enabled:
      return
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._cut_after(start_step)
    self._board = tensorboardX.SummaryWriter(
      str(self.path.parent / "tensorboard"), purge_step=start_step + 1
    )
    self._bar = tqdm.tqdm(
      total=total_steps,
      initial=start_step,
      unit="step",
      dynamic_ncols=True,
      smoothing=0.05,
      # A log file need not hold every movement of the bar.
      mininterval=0.2 if sys.stderr.isatty() else 20,
    )
    self._moved = False

  def advance(self) -> None:
    """Moves the progress bar by a step."""
    if self._enabled:
      if not self._moved:  # compiling does not count in the time that is left
        self._bar.unpause()
        self._moved = True
      self._bar.update()

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Logs scalars of a step everywhere and shows the first on the bar."""
    if not self._enabled:
      return
    values = {key: float(value) for key, value in values.items()}
    for key, value in values.items():
      self._board.add_scalar(key, value, step)
    with self.path.open("a") as log:
      # JSON has no NaN.
      known = {k: v if math.isfinite(v) else None for k, v in values.items()}
      log.write(json.dumps({"step": step} | known) + "\n")
    if "loss" in values:
      self._bar.set_postfix(
        loss=f"{values['loss']:.4f}",
        images_per_s=f"{values.get('images_per_second', 0):.0f}",
        refresh=False,
      )

  def image(self, step: int, name: str, pixels: np.ndarray) -> None:
    """Logs a picture: [H, W, 3] uint8."""
    if self._enabled:
      self._board.add_image(name, pixels, step, dataformats="HWC")

  def say(self, text: str) -> None:
    """Prints a line without breaking the progress bar."""
    if self._enabled:
      self._bar.write(text)

  def close(self) -> None:
    """Writes out everything and ends the bar."""
    if self._enabled:
      self._bar.close()
      self._board.close()

  def _cut_after(self, step: int) -> None:
    """Drops the lines later than `step`: the run is about to repeat them."""
    if not self.path.exists():
      return
    kept = []
    # What follows the last line end was cut off in the middle of writing.
    lines = self.path.read_text().split("\n")[:-1]
    for number, line in enumerate(lines, 1):
      try:
        if json.loads(line)["step"] <= step:
          kept.append(line + "\n")
      except (ValueError, KeyError, TypeError):
        raise config_lib.ConfigError(
          f"{self.path} line {number} is not a record of this project: move "
          "the file away or choose another --workdir"
        ) from None
    self.path.write_text("".join(kept))


class Meter:
  """Throughput of the training steps alone, the first (compiling) one apart.

  Attributes:
    compile_seconds: from the start to the end of the first step.
    seconds: spent in the other steps, up to the last reading.
  """

  def __init__(
    self, devices: np.ndarray, batch_size: int, flops_per_image: int
  ):
    """Starts the clock.

    Args:
      devices: JAX devices, all of one kind.
      batch_size: images a step, over all of them.
      flops_per_image: of a training step.
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
    """Leaves out what happens inside, once the steps so far are done."""
    jax.block_until_ready(values)
    begin = time.monotonic()
    yield
    if self._since is not None:
      self._since += time.monotonic() - begin

  def read(self) -> dict[str, float]:
    """Rates since the last reading; empty if there was no step."""
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
