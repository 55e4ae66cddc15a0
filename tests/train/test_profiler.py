"""Tests of profiler traces, and of the setting that asks for them."""

from __future__ import annotations

import jax
import pytest
from etils import epath
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from mae_jax.config import TrainConfig
from mae_jax.train import profiler
from mae_jax.utils.errors import ConfigError
from tests.helpers import runs, tiny


def config(profile: str, length: str = "4 steps"):
  return tiny.config(train={"length": length, "profile": profile})


@pytest.mark.parametrize(
  "text", ["100", "a:b", "5:4", "0:3", ":", "1:2:3", "-1:2", "1:", "1 2", "१:२"]
)
def test_a_wrong_range_is_one_line(text: str):
  with pytest.raises(
    ConfigError, match=r"^train.profile=.*, for instance 100:"
  ):
    config(text)


@pytest.mark.slow
def test_a_run_writes_a_trace(tmp_path, capsys):
  runs.train(config("2:3"), tmp_path)
  (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
  space = xplane_pb2.XSpace.FromString(trace.read_bytes())
  steps = []
  for plane in space.planes:
    names = {key: each.name for key, each in plane.event_metadata.items()}
    kinds = {key: each.name for key, each in plane.stat_metadata.items()}
    for event in (event for line in plane.lines for event in line.events):
      if names[event.metadata_id] == "train":
        steps += [
          stat.int64_value
          for stat in event.stats
          if kinds[stat.metadata_id] == "step_num"
        ]
  assert steps == [2, 3]
  assert f"the trace is in {tmp_path}/profile" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("text", "total", "complaint"),
  [("9:10", 8, "nothing is traced"), ("7:10", 8, "it is cut"), ("7:8", 8, "")],
)
def test_steps_after_the_end_are_a_warning(
  tmp_path, capsys, text, total, complaint
):
  settings = TrainConfig(length="8 steps", profile=text)
  make = profiler.Profiler
  make(settings, epath.Path(tmp_path), total, enabled=True)
  assert complaint in capsys.readouterr().err
  make(settings, epath.Path(tmp_path), total, enabled=False)
  assert capsys.readouterr().err == ""


def test_which_steps_are_traced(tmp_path, monkeypatch):
  """A trace may start within its range, and other processes have none."""
  monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: None)
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
  settings = TrainConfig(length="8 steps", profile="3:5")

  def traced(start: int, enabled: bool = True) -> list[int]:
    made = profiler.Profiler(settings, epath.Path(tmp_path), 8, enabled=enabled)
    found = []
    for step in range(start + 1, 9):
      if made.starts(step):
        made.start()
      found += [step] * made._active
      if made.ends(step):
        made.stop()
    return found

  assert traced(0) == [3, 4, 5]
  assert traced(3) == [4, 5]
  assert traced(5) == []
  assert traced(0, enabled=False) == []


def test_a_failed_trace_is_a_warning(tmp_path, monkeypatch, capsys):
  def fail(*_, **__):
    raise RuntimeError("only one profile may be active")

  monkeypatch.setattr(jax.profiler, "start_trace", fail)
  settings = TrainConfig(length="8 steps", profile="3:5")
  made = profiler.Profiler(settings, epath.Path(tmp_path), 8, enabled=True)
  made.start()
  assert "no trace of train.profile (RuntimeError: only" in (
    capsys.readouterr().err
  )
  assert not made.starts(4)
  made.stop()
