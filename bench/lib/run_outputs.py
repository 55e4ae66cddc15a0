"""Reads the outputs of a run, to compare runs with each other.

Values that depend on the clock are left out.
"""

from __future__ import annotations

import json
import pathlib
import struct
from typing import Any

from tensorboardX.proto import event_pb2

from mae_jax.train import metrics


def read_all(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns metrics, events, pictures, checkpoint steps and checksums."""
  steps = [
    int(path.name)
    for path in (workdir / "checkpoints").iterdir()
    if path.name.isdigit()
  ]
  picture = workdir / "reconstructions.png"
  newest = workdir / "checkpoints" / str(max(steps))
  loop = json.loads((newest / "loop" / "metadata").read_text())
  return {
    "metrics": read_metrics(workdir),
    "TensorBoard events": [
      (
        event.step,
        value.tag,
        value.image.encoded_image_string or value.simple_value,
      )
      for event in read_events(workdir)
      for value in event.summary.value
      if value.tag not in metrics.TIMING
    ],
    "pictures": picture.read_bytes() if picture.exists() else None,
    "steps of checkpoints": sorted(steps),
    "state": (loop["step"], loop["health"], loop["checksums"]),
  }


def read_metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
  """Returns the lines of metrics.jsonl."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if k not in metrics.TIMING}
    for line in lines
  ]


def read_events(workdir: pathlib.Path) -> list[event_pb2.Event]:
  """Returns all TensorBoard events."""
  found = []  # a record is a length, its checksum, the event, its checksum
  for path in sorted((workdir / "tensorboard").iterdir()):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack("<Q", data[:8])
      found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
      data = data[16 + length :]
  return found
