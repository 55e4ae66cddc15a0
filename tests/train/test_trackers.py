"""Tests of trackers: their local stores, resuming, and failing servers."""

from __future__ import annotations

import json
import pathlib
import struct
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from etils import epath

from mae_jax.config import Config
from mae_jax.train import loop, metrics, tasks
from mae_jax.train.sinks import trackers
from mae_jax.utils import signals
from mae_jax.utils.errors import ConfigError
from tests.helpers import runs, tiny

PIXELS = np.zeros((8, 8, 3), np.uint8)


def config(*names: str, **train: Any) -> Config:
  return tiny.config(train={"trackers": names, "project": "digits"} | train)


def writer(workdir: pathlib.Path, names: tuple[str, ...], start: int = 0):
  path = epath.Path(workdir)
  return metrics.Writer(
    path,
    start_step=start,
    total_steps=8,
    open_trackers=lambda: trackers.open_all(config(*names), path),
  )


class Fake:
  """A tracker that remembers what it gets, also over restarts."""

  runs: dict[str, list]

  def __init__(self, run: trackers.TrackedRun):
    """Starts or continues a run."""
    self.id = run.id or f"run {len(self.runs)}"
    self.where = "nowhere"
    self._got = self.runs.setdefault(self.id, [])
    self._got.append((run.project, run.name, run.id))

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """Records scalars."""
    self._got.append((step, *values))

  def image(self, step: int, name: str, pixels: np.ndarray) -> None:
    """Records a picture."""
    self._got.append((step, name, pixels.shape))

  def close(self, *, finished: bool) -> None:
    """Records the end."""
    self._got.append(finished)


@pytest.fixture
def fake(monkeypatch) -> type[Fake]:
  """The class that `train.trackers=wandb` uses in place of its own."""
  monkeypatch.setattr(Fake, "runs", {}, raising=False)
  monkeypatch.setitem(trackers.TRACKERS, "wandb", f"{__name__}:Fake")
  return Fake


def test_a_resumed_run_continues_and_repeats_nothing(tmp_path, fake):
  workdir = tmp_path / "run"
  log = writer(workdir, ("wandb",))
  for step in (2, 4, 6):
    log.scalars(step, {"loss": 1})
  log.scalars(6, {"eval_seconds": 1, "eval_loss": 2})
  log.image(6, "picture", PIXELS)
  log.close()
  again = writer(workdir, ("wandb",), start=4)
  again.scalars(6, {"loss": 1})
  again.close()
  # The lines of step 6 were removed twice; those of the evaluation once.
  last = writer(workdir, ("wandb",), start=4)
  last.scalars(6, {"loss": 1, "new": 1})
  last.scalars(6, {"eval_seconds": 1, "eval_loss": 2})
  last.image(6, "picture", PIXELS)
  last.scalars(8, {"loss": 1})
  last.image(8, "picture", PIXELS)
  for _ in range(4):
    last.advance()
  last.close()
  first = [(2, "loss"), (4, "loss"), (6, "loss")]
  first += [(6, "eval_seconds", "eval_loss"), (6, "picture", (8, 8, 3))]
  assert fake.runs == {
    "run 0": [
      ("digits", "run", None), *first, False,
      ("digits", "run", "run 0"), False,
      ("digits", "run", "run 0"), (6, "new"), (8, "loss"),
      (8, "picture", (8, 8, 3)), True,
    ]
  }  # fmt: skip
  assert json.loads((workdir / "trackers.json").read_text()) == {
    "wandb": "run 0"
  }


def test_a_tracker_that_starts_later_gets_all_from_then_on(tmp_path, fake):
  log = writer(tmp_path, ())
  log.scalars(6, {"loss": 1})
  log.close()
  log = writer(tmp_path, ("wandb", "wandb"), start=4)
  log.scalars(6, {"loss": 1})
  log.close()
  assert fake.runs["run 0"][1:] == [(6, "loss"), False]


def test_a_failing_tracker_is_one_warning(tmp_path, fake, monkeypatch, capsys):
  def fail(self, step, values):
    raise ConnectionError("no route to host")

  log = writer(tmp_path, ("wandb",))
  monkeypatch.setattr(fake, "scalars", fail)
  for step in (2, 4):
    log.scalars(step, {"loss": 1})
  log.flush()
  log.close()
  err = capsys.readouterr().err
  assert err.count("wandb failed (ConnectionError: no route to host)") == 1
  assert "wandb lacks 2 record(s)" in err
  assert fake.runs["run 0"][1:] == [False]
  assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_tracker_that_hangs_is_given_up(tmp_path, fake, monkeypatch, capsys):
  release = threading.Event()
  monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.1)
  monkeypatch.setattr(fake, "scalars", lambda *_: release.wait())
  log = writer(tmp_path, ("wandb",))
  log.scalars(2, {"loss": 1})
  log.close()
  assert "wandb was given up after 0.1 s" in capsys.readouterr().err
  release.set()


def test_an_abandoned_run_is_left_to_the_other_process(tmp_path, fake):
  log = writer(tmp_path, ("wandb",))
  log.abandon()
  log.scalars(2, {"loss": 1})
  log.close()
  assert fake.runs == {"run 0": [("digits", tmp_path.name, None)]}


def test_a_tracker_that_cannot_start(tmp_path, fake, monkeypatch, capsys):
  """A new run stops; an earlier one, which nobody watches, trains on."""
  writer(tmp_path / "old", ("wandb",)).close()

  def fail(self, run):
    raise RuntimeError("not logged in\nat all")

  monkeypatch.setattr(fake, "__init__", fail)
  with pytest.raises(
    ConfigError, match=r"wandb cannot start \(RuntimeError: no"
  ):
    writer(tmp_path / "new", ("wandb",))
  writer(tmp_path / "old", ("wandb",)).close()
  assert "wandb does not continue run run 0" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[1]", "{", '{"wandb": 3}', "3"])
def test_a_damaged_file_of_ids_is_one_line(tmp_path, fake, text):
  (tmp_path / "trackers.json").write_text(text)
  with pytest.raises(ConfigError, match="does not have the ids of trackers"):
    writer(tmp_path, ("wandb",))


def test_a_missing_package_stops_a_run_at_its_start(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(ConfigError, match=r"pip install 'mae_jax\[wandb\]'"):
    loop.train(
      tasks.load("pretrain"),
      config("wandb"),
      str(tmp_path / "run"),
      signals.StopSignals(),
    )
  assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_callers_get_each_record(tmp_path):
  settings = tiny.config(train={"length": "4 steps", "log_every": "2 steps"})
  mesh = runs.devices_mesh()
  task, data = runs.open_task(settings, mesh)
  found: list[dict[str, float]] = []
  loop.run(task, data, settings, mesh, tmp_path, on_metrics=found.append)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  written = [json.loads(line) for line in lines]
  assert all(record.pop("timestamp") > 1.7e9 for record in written)
  assert found == written
  assert [record["step"] for record in found] == [2, 4, 4]


def test_an_error_of_a_caller_ends_the_run(tmp_path):
  def fail(record: dict[str, float]) -> None:
    raise KeyError("mine")

  log = metrics.Writer(tmp_path, start_step=0, total_steps=8, on_metrics=fail)
  with pytest.raises(KeyError, match="mine"):
    log.scalars(2, {"loss": 1.0})
  log.close()
  text = (tmp_path / "metrics.jsonl").read_text()
  assert text.startswith('{"step": 2, "loss": 1.0, "timestamp": ')


def logged_and_resumed(workdir: pathlib.Path, name: str) -> str:
  """Logs steps 2 to 6, resumes at 4, and returns the tracker's id."""
  log = writer(workdir, (name,))
  for step in (2, 4, 6):
    log.scalars(step, {"loss": step / 2})
  log.image(6, "picture", PIXELS)
  log.close()
  log = writer(workdir, (name,), start=4)
  for step in (6, 8):
    log.scalars(step, {"loss": step / 2})
    log._step = step
  log.close()
  return json.loads((workdir / "trackers.json").read_text())[name]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_in_a_local_store(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/m.db")
  name = logged_and_resumed(tmp_path / "run", "mlflow")
  import mlflow

  client = mlflow.MlflowClient()
  history = client.get_metric_history(name, "loss")
  assert [(x.step, x.value) for x in history] == [
    (2, 1),
    (4, 2),
    (6, 3),
    (8, 4),
  ]
  run = client.get_run(name)
  assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
  assert run.data.params["model.width"] == "32"
  experiment = client.get_experiment(run.info.experiment_id)
  assert experiment.name == "digits"
  (folder,) = client.list_artifacts(name)
  assert folder.path == "images"


def wandb_records(data: bytes) -> Iterator[bytes]:
  """Yields the records of a file of wandb, which has LevelDB's log format."""
  start, parts = 7, b""
  while start + 7 <= len(data):
    if 2**15 - start % 2**15 < 7:  # the rest of a block is too small
      start += 2**15 - start % 2**15
    _, length, kind = struct.unpack_from("<IHB", data, start)
    parts += data[start + 7 : start + 7 + length]
    start += 7 + length
    if kind in (1, 4):  # a whole record, or the last part of one
      yield parts
      parts = b""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("WANDB_MODE", "offline")
  name = logged_and_resumed(tmp_path / "run", "wandb")
  from wandb.proto import wandb_internal_pb2

  found = []
  folder = tmp_path / "run" / "wandb"
  for path in sorted(folder.glob(f"offline-run-*/run-{name}.wandb")):
    for data in wandb_records(path.read_bytes()):
      history = wandb_internal_pb2.Record.FromString(data).history
      for item in history.item:
        if "loss" in (item.key, *item.nested_key):
          found.append((history.step.num, json.loads(item.value_json)))
  assert found == [(2, 1), (4, 2), (6, 3), (8, 4)]
  assert "wandb continues this run: `wandb sync" in capsys.readouterr().out


def test_trackio(tmp_path, monkeypatch):
  """Trackio needs an older Pillow than we do, so a stand-in takes its place."""
  calls: list[Any] = []

  class Run:
    def log(self, values, step):
      calls.append((step, values))

    def finish(self):
      calls.append("finish")

  def init(project, *, name, config, resume, embed):
    calls.append((project, name, config["model.width"], resume))
    return Run()

  fake = types.ModuleType("trackio")
  vars(fake).update(init=init, Image=lambda pixels: pixels.shape)
  monkeypatch.setitem(sys.modules, "trackio", fake)
  monkeypatch.delitem(
    sys.modules, "mae_jax.train.sinks.trackio_tracker", raising=False
  )
  name = logged_and_resumed(tmp_path / "run", "trackio")
  assert name.startswith("run-")
  start = ("digits", name, "32", "allow")
  assert calls == [
    start,
    *((step, {"loss": step / 2}) for step in (2, 4, 6)),
    (6, {"picture": (8, 8, 3)}),
    "finish",
    start,
    (8, {"loss": 4.0}),
    "finish",
  ]
