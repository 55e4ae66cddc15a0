"""Logs say what was measured, once for every step, also after a restart."""

from __future__ import annotations

import json
import pathlib
import struct

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from mae_jax import config as config_lib
from mae_jax import metrics


def writer(workdir: pathlib.Path, start: int = 0, **kwargs) -> metrics.Writer:
  return metrics.Writer(workdir, start_step=start, total_steps=10, **kwargs)


def lines(workdir: pathlib.Path) -> list[dict]:
  text = (workdir / "metrics.jsonl").read_text()
  assert text == "" or text.endswith("\n")
  return [json.loads(line) for line in text.splitlines()]


def events(workdir: pathlib.Path) -> list[event_pb2.Event]:
  """Records of the event files: length, checksum, bytes, checksum."""
  found = []
  for path in sorted((workdir / "tensorboard").iterdir()):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack("<Q", data[:8])
      found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
      data = data[16 + length :]
  return found


def scalars(workdir: pathlib.Path) -> list[tuple[int, str, float]]:
  return [
    (event.step, value.tag, value.simple_value)
    for event in events(workdir)
    for value in event.summary.value
    if value.WhichOneof("value") == "simple_value"
  ]


def test_scalars_are_written_twice(tmp_path):
  log = writer(tmp_path / "new" / "run")
  log.scalars(2, {"loss": np.float32(0.5), "lr": 0.25})
  # Readable at once, not only when the run has ended.
  assert lines(tmp_path / "new" / "run") == [
    {"step": 2, "loss": 0.5, "lr": 0.25}
  ]
  log.scalars(4, {"images_per_second": 100})
  log.close()
  assert log.path == tmp_path / "new" / "run" / "metrics.jsonl"
  assert lines(tmp_path / "new" / "run")[1] == {
    "step": 4,
    "images_per_second": 100.0,
  }
  assert scalars(tmp_path / "new" / "run") == [
    (2, "loss", 0.5),
    (2, "lr", 0.25),
    (4, "images_per_second", 100.0),
  ]


def test_pictures(tmp_path):
  log = writer(tmp_path)
  log.image(3, "reconstructions", np.full((5, 7, 3), 9, np.uint8))
  log.close()
  images = [
    (event.step, value.tag, value.image.height, value.image.width)
    for event in events(tmp_path)
    for value in event.summary.value
  ]
  assert images == [(3, "reconstructions", 5, 7)]


def test_what_is_said_and_how_far_it_is(tmp_path, capsys):
  log = writer(tmp_path, start=4)
  log.say("a line of its own")
  for _ in range(3):
    log.advance()
  log.close()
  captured = capsys.readouterr()
  assert "a line of its own" in captured.out.splitlines()
  assert "7/10" in captured.err


@pytest.mark.parametrize(
  ("restored", "kept"), [(0, []), (4, [2, 4]), (5, [2, 4]), (8, [2, 4, 6, 8])]
)
def test_a_restart_repeats_no_step(tmp_path, restored: int, kept: list[int]):
  log = writer(tmp_path)
  for step in (2, 4, 6, 8):
    log.scalars(step, {"loss": step / 8})
  log.close()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 10, "lo')  # killed in the middle of a line
  log = writer(tmp_path, start=restored)
  assert [line["step"] for line in lines(tmp_path)] == kept
  log.scalars(restored + 1, {"loss": 9.0})
  log.close()
  assert lines(tmp_path) == [
    *({"step": step, "loss": step / 8} for step in kept),
    {"step": restored + 1, "loss": 9.0},
  ]
  # TensorBoard is told to forget what comes from this step on.
  starts = [
    event.step
    for event in events(tmp_path)
    if event.WhichOneof("what") == "session_log"
  ]
  assert starts[-1] == restored + 1


def test_a_file_of_another_kind_is_refused_and_kept(tmp_path):
  for text in ("step,loss\n1,2\n", '{"loss": 1}\n', "[1]\n", '{"step": "a"}\n'):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + text)
    with pytest.raises(config_lib.ConfigError, match="line 2 is not a record"):
      writer(tmp_path, start=1)
    assert path.read_text() == '{"step": 1}\n' + text


def test_other_processes_write_nothing(tmp_path, capsys):
  log = writer(tmp_path / "run", enabled=False)
  log.advance()
  log.scalars(1, {"loss": 1.0})
  log.image(1, "x", np.zeros((2, 2, 3), np.uint8))
  log.say("nothing")
  log.close()
  assert list(tmp_path.iterdir()) == []
  captured = capsys.readouterr()
  assert (captured.out, captured.err) == ("", "")
