"""Logs metrics: TensorBoard, `metrics.jsonl`, a progress bar, throughput.

Only one process writes; the Writer of the others does nothing.
"""

import contextlib
import json
import math
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from mae_jax.utils import console, hardware, log_file, startup, storage
from mae_jax.utils.errors import ConfigError

# tensorboardX imports these for seconds, for writers that are not used here.
with startup.hide_packages("torch", "google.cloud.storage", "boto3"):
  from tensorboardX import record_writer, summary
  from tensorboardX.proto import event_pb2

# Fields that depend on the clock: they differ in a resumed run.
TIMING = (
  "eval_seconds",
  "images_per_second",
  "images_per_second_per_device",
  "mfu",
  "seconds",
  "start_seconds",
  *(f"start_{part}" for part in startup.PARTS),
)


class Writer:
  """Writes scalars, images and progress of a run.

  Attributes:
    path: path of `metrics.jsonl`, one JSON object a line: the step, then
      scalars.
    evaluated: whether the log has an evaluation at the first step.
  """

  def __init__(
    self,
    workdir: epath.PathLike,
    *,
    start_step: int,
    total_steps: int,
    enabled: bool = True,
  ):
    """Opens the logs and removes records later than `start_step`.

    Lines removed from `metrics.jsonl` are appended to `metrics.cut.jsonl`.

    Args:
      workdir: directory of the run.
      start_step: steps already taken, 0 for a new run.
      total_steps: the last step of the run.
      enabled: whether this process writes.

    Raises:
      ConfigError: if the log of an earlier run cannot be read.
      OSError: if the logs cannot be written.
    """
    self._enabled = enabled
    workdir = epath.Path(workdir)
    self.path = workdir / "metrics.jsonl"
    self.evaluated = False
    if not enabled:
      return
    board = workdir / "tensorboard"
    storage.make_directories(board)
    kept = _cut_lines(self.path, start_step)
    self.evaluated = any(
      line["step"] == start_step and "eval_seconds" in line for line in kept
    )
    # A bucket has no empty directories.
    for path in sorted(board.iterdir()) if board.is_dir() else ():
      if ".tfevents." in path.name:
        _cut_events(path, start_step)
    # The name that TensorBoard expects; two starts may share a second.
    name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
    self._board = log_file.LogFile(board / name)
    self._lines = log_file.LogFile(self.path)
    self._board.append(_event(file_version="brain.Event:2"))
    self._failing = False
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
      self._bar.update()

  def say(self, text: str) -> None:
    """Prints a line without breaking the bar."""
    if self._enabled:
      console.info(text)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Logs scalars of a step everywhere and shows the first on the bar."""
    if not self._enabled:
      return
    values = {key: float(value) for key, value in values.items()}
    # JSON has no NaN.
    known = {k: v if math.isfinite(v) else None for k, v in values.items()}
    self._lines.append((json.dumps({"step": step} | known) + "\n").encode())
    self._board.append(
      b"".join(
        _event(step=step, summary=summary.scalar(key, value))
        for key, value in values.items()
      )
    )
    self._check_files()
    if "loss" in values:
      self._bar.set_postfix(
        loss=f"{values['loss']:.4f}",
        images_per_s=f"{values.get('images_per_second', 0):.0f}",
        refresh=False,
      )

  def image(self, step: int, name: str, pixels: np.ndarray) -> None:
    """Logs a picture: [H, W, 3] uint8."""
    if self._enabled:
      picture = summary.image(name, pixels, dataformats="HWC")
      self._board.append(_event(step=step, summary=picture))
      self._check_files()

  def flush(self) -> None:
    """Writes all pending records to disk.

    Raises:
      OSError: if that fails; the records stay in memory.
    """
    if self._enabled:
      self._lines.flush()
      self._board.flush()

  def abandon(self) -> None:
    """Stops writing: another run owns the logs now."""
    if self._enabled:
      self._lines.drop()
      self._board.drop()

  def close(self) -> None:
    """Writes pending records if possible, and closes the bar."""
    if self._enabled:
      self._bar.close()
      with contextlib.suppress(OSError):  # it was reported before
        self.flush()

  def _check_files(self) -> None:
    """Warns when writing starts to fail, and when it works again."""
    error = self._lines.error or self._board.error
    if error is not None and not self._failing:
      console.warn(f"logs wait in memory, because writing failed: {error}")
    elif error is None and self._failing:
      console.warn("the logs are written again; no line is missing")
    self._failing = error is not None


def _event(**fields: Any) -> bytes:
  """Encodes one record of an event file: length, checksum, event, checksum."""
  event = event_pb2.Event(wall_time=time.time(), **fields)
  data = event.SerializeToString()
  length = struct.pack("<Q", len(data))
  return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
  return struct.pack("<I", record_writer.masked_crc32c(data))


def _cut_lines(path: epath.Path, step: int) -> list[dict[str, Any]]:
  """Moves lines later than `step` away; the run will write them again.

  Returns:
    The records that stay.
  """
  if not path.exists():
    return []
  kept, cut, records = [], [], []
  # Text after the last line end is a record whose writing was interrupted.
  *lines, rest = path.read_bytes().split(b"\n")
  if _is_json(rest):  # an editor left out the line end
    lines, rest = [*lines, rest], b"\n"
  for number, line in enumerate(lines, 1):
    try:
      record = json.loads(line)
      if record["step"] <= step:
        kept.append(line + b"\n")
        records.append(record)
      else:
        cut.append(line + b"\n")
    except (ValueError, KeyError, TypeError):
      raise ConfigError(
        f"{path} line {number} is not a record of this project: move "
        "the file away or choose another --workdir"
      ) from None
  if cut:
    away = log_file.LogFile(path.with_name("metrics.cut.jsonl"))
    away.append(b"".join(cut))
    away.flush()
  if cut or rest:
    storage.write_atomic(path, b"".join(kept))
  return records


def _is_json(text: bytes) -> bool:
  try:
    json.loads(text)
    return True
  except ValueError:
    return False


def _cut_events(path: epath.Path, step: int) -> None:
  """Truncates a TensorBoard file before its first event later than `step`."""
  data = path.read_bytes()
  end = 0
  for stop, event in events(data):
    if event.step > step:
      break
    end = stop
  if end < len(data):
    storage.write_atomic(path, data[:end])


def events(data: bytes) -> Iterator[tuple[int, event_pb2.Event]]:
  """Yields the end and the content of each whole record of an event file."""
  start = 0
  while start + 12 <= len(data):
    (length,) = struct.unpack_from("<Q", data, start)
    body = data[start + 12 : start + 12 + length]
    start += 12 + length + 4
    if data[start - 4 : start] != _checksum(body):
      return  # its writing was interrupted
    yield start, event_pb2.Event.FromString(body)


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
