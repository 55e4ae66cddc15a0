"""Tests that logs have each step exactly once, also after a restart."""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import pytest

from bench.lib import run_outputs
from mae_jax.train import metrics
from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError
from tests.helpers.disks import full_disk


def writer(workdir: pathlib.Path, start: int = 0, **kwargs) -> metrics.Writer:
  return metrics.Writer(workdir, start_step=start, total_steps=10, **kwargs)


def lines(workdir: pathlib.Path) -> list[dict]:
  text = (workdir / "metrics.jsonl").read_text()
  assert text == "" or text.endswith("\n")
  found = [json.loads(line) for line in text.splitlines()]
  for each in found:
    each.pop("timestamp")
  return found


def scalars(workdir: pathlib.Path) -> list[tuple[int, str, float]]:
  return [
    (event.step, value.tag, value.simple_value)
    for event in run_outputs.read_events(workdir)
    for value in event.summary.value
    if value.WhichOneof("value") == "simple_value"
  ]


def test_scalars_are_written_to_both_logs(tmp_path):
  log = writer(tmp_path / "new" / "run")
  log.scalars(2, {"loss": np.float32(0.5), "lr": 0.25})
  # Logs are readable during the run.
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


def test_pictures_are_written_to_both_logs(tmp_path):
  log = writer(tmp_path)
  log.image(3, "reconstructions", np.full((5, 7, 3), 9, np.uint8))
  log.close()
  images = [
    (event.step, value.tag, value.image.height, value.image.width)
    for event in run_outputs.read_events(tmp_path)
    for value in event.summary.value
  ]
  assert images == [(3, "reconstructions", 5, 7)]


def test_progress_is_reported(tmp_path, capsys):
  log = writer(tmp_path, start=4)
  console.warn("a line of its own")
  for _ in range(3):
    log.advance()
  log.close()
  lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
  assert "warning: a line of its own" in lines
  assert any("7/10" in line for line in lines)


@pytest.mark.parametrize(
  ("restored", "saved"), [(0, []), (4, [2, 4]), (5, [2, 4]), (8, [2, 4, 6, 8])]
)
def test_a_restart_logs_each_step_once(
  tmp_path, restored: int, saved: list[int]
):
  log = writer(tmp_path)
  for step in (2, 4, 6, 8):
    log.scalars(step, {"loss": step / 8})
  log.close()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 10, "lo')  # the run was killed in the middle of a line
  log = writer(tmp_path, start=restored)
  assert [line["step"] for line in lines(tmp_path)] == saved
  log.scalars(restored + 1, {"loss": 9.0})
  log.close()
  assert lines(tmp_path) == [
    *({"step": step, "loss": step / 8} for step in saved),
    {"step": restored + 1, "loss": 9.0},
  ]
  board = [(step, "loss", step / 8) for step in saved]
  assert scalars(tmp_path) == [*board, (restored + 1, "loss", 9.0)]
  # Removed lines are saved elsewhere.
  removed = tmp_path / "metrics.cut.jsonl"
  text = removed.read_text() if removed.exists() else ""
  away = [json.loads(line)["step"] for line in text.splitlines()]
  assert saved + away == [2, 4, 6, 8]


def test_incomplete_events_are_removed(tmp_path):
  log = writer(tmp_path)
  for step in (2, 4):
    log.scalars(step, {"loss": 1.0})
  log.close()
  (path,) = (tmp_path / "tensorboard").iterdir()
  whole = path.read_bytes()
  for end in range(len(whole) - 1, len(whole) - 30, -4):
    path.write_bytes(whole[:end])
    writer(tmp_path, start=4).close()
    assert [step for step, *_ in scalars(tmp_path)] == [2]


@pytest.mark.parametrize(
  ("step", "values", "evaluated"),
  [
    (3, {"loss": 1.0}, []),
    (3, {"eval_seconds": 1.0}, [3]),
    (2, {"eval_seconds": 1.0}, [2]),
    (4, {"eval_seconds": 1.0}, []),
  ],
)
def test_which_steps_were_evaluated_before(tmp_path, step, values, evaluated):
  log = writer(tmp_path)
  log.scalars(step, values)
  log.close()
  again = writer(tmp_path, start=3)
  again.close()
  assert [each["step"] for each in again.evaluations] == evaluated


def test_lines_wait_while_the_disk_is_full(tmp_path, capsys):
  """Writes fail in the middle; no line is lost, repeated or incomplete."""
  log = writer(tmp_path)
  log.scalars(1, {"loss": 1.0})
  with full_disk():
    for step in (2, 3):
      log.scalars(step, {"loss": 1.0})
    with pytest.raises(OSError, match="File too large"):
      log.flush()
  assert "logs wait in memory" in capsys.readouterr().err
  log.scalars(4, {"loss": 1.0})
  assert "no line is missing" in capsys.readouterr().err
  log.close()
  assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
  assert [step for step, *_ in scalars(tmp_path)] == [1, 2, 3, 4]


def test_a_deleted_log_is_not_created_again(tmp_path):
  log = writer(tmp_path / "run")
  log.scalars(1, {"loss": 1.0})
  shutil.rmtree(tmp_path / "run")
  log.scalars(2, {"loss": 1.0})
  with pytest.raises(FileNotFoundError):
    log.flush()
  assert not (tmp_path / "run").exists()
  log.close()


def test_a_file_of_another_kind_is_refused_and_kept(tmp_path):
  for text in ("step,loss\n1,2\n", '{"loss": 1}\n', "[1]\n", '{"step": "a"}\n'):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + text)
    with pytest.raises(ConfigError, match="line 2 is not a record"):
      writer(tmp_path, start=1)
    assert path.read_text() == '{"step": 1}\n' + text


def test_other_processes_write_nothing(tmp_path, capsys):
  log = writer(tmp_path / "run", enabled=False)
  log.advance()
  log.scalars(1, {"loss": 1.0})
  log.image(1, "x", np.zeros((2, 2, 3), np.uint8))
  log.close()
  assert list(tmp_path.iterdir()) == []
  captured = capsys.readouterr()
  assert (captured.out, captured.err) == ("", "")
