"""Event files of TensorBoard, written without TensorFlow."""

import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from mae_jax.train.sinks.file_sink import FileSink
from mae_jax.utils import startup, storage

# tensorboardX imports these for seconds, for writers that are not used here.
with startup.hide_packages("torch", "google.cloud.storage", "boto3"):
  from tensorboardX import record_writer, summary
  from tensorboardX.proto import event_pb2


class TensorBoard(FileSink):
  """An event file, beside those of the run's earlier starts."""

  def __init__(self, directory: epath.Path, start_step: int):
    """Opens a new file and removes events later than `start_step` from others.

    Raises:
      OSError: if the files cannot be written.
    """
    storage.make_directories(directory)
    # A bucket has no empty directories.
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
      if ".tfevents." in path.name:
        _cut_events(path, start_step)
    # The name that TensorBoard expects; two starts may share a second.
    name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
    super().__init__(directory / name)
    self._file.append(_event(file_version="brain.Event:2"))

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """Appends one event for each scalar."""
    self._file.append(
      b"".join(
        _event(step=step, summary=summary.scalar(key, value))
        for key, value in values.items()
      )
    )

  def image(self, step: int, name: str, pixels: np.ndarray) -> None:
    """Appends a picture."""
    picture = summary.image(name, pixels, dataformats="HWC")
    self._file.append(_event(step=step, summary=picture))


def _event(**fields: Any) -> bytes:
  """Encodes one record of an event file: length, checksum, event, checksum."""
  event = event_pb2.Event(wall_time=time.time(), **fields)
  data = event.SerializeToString()
  length = struct.pack("<Q", len(data))
  return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
  return struct.pack("<I", record_writer.masked_crc32c(data))


def _cut_events(path: epath.Path, step: int) -> None:
  """Truncates a file before its first event later than `step`."""
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
