"""Tests that failures do not lose trained weights."""

from __future__ import annotations

import itertools
import json
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from sklearn import datasets

from bench.lib import run_outputs
from mae_jax import checkpoints
from mae_jax.config import EvalConfig
from mae_jax.data.bad_images import BadImages
from mae_jax.evals import pretraining
from mae_jax.train import health as watch_lib
from mae_jax.train import step as update
from mae_jax.train.run_data import RunData
from mae_jax.train.tasks import pretrain as steps
from mae_jax.utils.errors import ConfigError, TrainingError
from tests.helpers import runs, tiny

_TRAIN = {"length": "4 steps", "log_every": "50 steps"}
_OFTEN = {"log_every": "1 steps", "save_every": "2 steps"}
_NO_EVAL = EvalConfig(images=0, shots=(0,))


@pytest.mark.slow
def test_a_failing_evaluation_does_not_lose_the_weights(tmp_path, monkeypatch):
  config = tiny.config(train=_TRAIN, eval=_NO_EVAL)

  def fail(self, params):
    raise RuntimeError("no probe today")

  with monkeypatch.context() as patch:
    patch.setattr(pretraining.Evaluation, "__call__", fail)
    with pytest.raises(RuntimeError, match="no probe today"):
      runs.train(config, tmp_path)
  state, _ = runs.steps(config, 4)
  jax.tree.map(
    np.testing.assert_array_equal, runs.params(tmp_path, config), state.params
  )
  runs.train(config, tmp_path)  # the run can still be finished


@pytest.mark.slow
def test_a_diverged_run_stops_and_keeps_the_last_good_state(tmp_path):
  config = tiny.config(
    train={**_TRAIN, "length": "40 steps", "max_bad_steps": 3},
    eval=_NO_EVAL,
    optim={"lr": 1e20, "warmup": "0 steps"},
  )
  with pytest.raises(TrainingError, match="max_bad_steps=3") as stop:
    runs.train(config, tmp_path)
  assert f"init_from={tmp_path}" in str(stop.value)
  saved = runs.params(tmp_path, config)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved))


@pytest.mark.slow
def test_a_run_past_its_new_length_only_reports(tmp_path, capsys):
  longer = tiny.config(train=_TRAIN, eval=_NO_EVAL)
  runs.train(longer, tmp_path)
  shorter = tiny.config(train={**_TRAIN, "length": "3 steps"}, eval=_NO_EVAL)
  runs.train(shorter, tmp_path)
  assert "all 4 steps were already done" in capsys.readouterr().out


@pytest.mark.slow
def test_a_rerun_writes_missing_pictures(tmp_path):
  config = tiny.config(train=_TRAIN, eval=EvalConfig(images=2))
  runs.train(config, tmp_path)
  before = (tmp_path / "reconstructions.png").read_bytes()
  (tmp_path / "reconstructions.png").unlink()
  shutil.rmtree(tmp_path / "tensorboard")
  runs.train(config, tmp_path)
  assert (tmp_path / "reconstructions.png").read_bytes() == before


@pytest.mark.slow
def test_the_inputs_of_a_failed_step_are_saved(tmp_path):
  config = tiny.config(
    train={**_TRAIN, "length": "40 steps", "max_bad_steps": 3},
    eval=_NO_EVAL,
    optim={"lr": 1e20, "warmup": "0 steps"},
  )
  with pytest.raises(TrainingError, match="bad_step_") as stop:
    runs.train(config, tmp_path, devices=2)
  (path,) = tmp_path.glob("bad_step_*.npz")
  assert str(path) in str(stop.value)
  with np.load(path) as file:
    saved = dict(file)
  _, data = runs.open_task(config, runs.devices_mesh())
  given = next(data.train_batches(int(saved["step"]) - 1))
  for name in given:
    np.testing.assert_array_equal(saved[name], given[name])
  picture = np.asarray(Image.open(path.with_suffix(".png")))
  assert picture.shape == (4 * 8, 8 * 8, 3)
  np.testing.assert_array_equal(picture[:8, 8:16, 0], given["image"][1, ..., 0])


@pytest.mark.slow
def test_skipped_steps_and_spikes_are_reported_and_logged(
  tmp_path, capsys, monkeypatch
):
  """Uses made-up losses, and checks the counters in the log."""
  losses = jnp.array([1.0, 9.0, jnp.nan, 1.0])
  real = update.loss_and_grads

  def loss_and_grads(loss_fn, params, batch, accum_steps, **rest):
    (loss, aux), grads = real(loss_fn, params, batch, accum_steps, **rest)
    return (losses[count[0]] + 0 * loss, aux), grads

  count = [None]
  train_step = steps.train_step

  def counted(state, batch, **rest):
    count[0] = state.step
    return train_step(state, batch, **rest)

  monkeypatch.setattr(update, "loss_and_grads", loss_and_grads)
  monkeypatch.setattr(steps, "train_step", counted)
  config = tiny.config(train={**_TRAIN, "log_every": "1 steps"}, eval=_NO_EVAL)
  runs.train(config, tmp_path)
  output = capsys.readouterr().err
  assert "loss spike at step 2: 9 is more than train.spike_factor=3" in output
  assert "step 3 is skipped, because it is not finite: loss nan" in output
  lines = [
    line for line in run_outputs.read_metrics(tmp_path) if "loss" in line
  ]
  assert [line["loss_spikes"] for line in lines] == [0, 1, 1, 1]
  assert [line["skipped"] for line in lines] == [0, 0, 1, 1]
  assert lines[2]["loss"] is None


@pytest.mark.slow
def test_a_run_stops_if_another_takes_its_workdir(tmp_path, monkeypatch):
  """Without working locks, the newer run continues."""
  config = tiny.config(
    train={"length": "30 steps", "save_every": "2 steps"}, eval=_NO_EVAL
  )
  train_batches = RunData.train_batches

  def then_taken(self, start_step):
    for step, batch in enumerate(train_batches(self, start_step)):
      if step == 10:
        owner = {"run": "x", "pid": 7, "host": "other", "since": "now"}
        (tmp_path / "run.json").write_text(json.dumps(owner))
        (tmp_path / "metrics.jsonl").write_text("the newer run's\n")
      yield batch

  monkeypatch.setattr(RunData, "train_batches", then_taken)
  with pytest.raises(TrainingError, match="process 7 on other"):
    runs.train(config, tmp_path)
  assert (tmp_path / "metrics.jsonl").read_text() == "the newer run's\n"


@pytest.mark.slow
def test_a_slow_disk_delays_saves_and_loses_nothing(tmp_path, monkeypatch):
  """Uses writes that take longer than the steps between them."""
  config = tiny.config(
    train={
      "length": "6 steps",
      "log_every": "1 steps",
      "save_every": "1 steps",
    },
    eval=_NO_EVAL,
  )
  runs.train(config, tmp_path / "whole")
  finalize = ocp.CheckpointManager._finalize

  def slowly(self, *args, **kwargs):
    time.sleep(0.3)
    return finalize(self, *args, **kwargs)

  monkeypatch.setattr(ocp.CheckpointManager, "_finalize", slowly)
  runs.train(config, tmp_path / "slow")
  assert run_outputs.read_metrics(
    tmp_path / "slow"
  ) == run_outputs.read_metrics(tmp_path / "whole")
  names = [
    sorted((tmp_path / run / "checkpoints").iterdir())
    for run in ("slow", "whole")
  ]
  assert (
    [p.name for p in names[0]] == [p.name for p in names[1]] == ["4", "5", "6"]
  )


@pytest.fixture
def scans(tmp_path):
  """A folder of twenty gray images in two classes; one of each is broken."""
  folder = tmp_path / "scans"
  images = datasets.load_digits().images[:20]
  for number, pixels in enumerate(images):
    path = folder / "train" / "ab"[number % 2] / f"{number:02d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 15).astype(np.uint8)).save(path)
  for name in ("a/04.png", "b/07.png"):
    (folder / "train" / name).write_bytes(b"not an image")
  return folder


@pytest.mark.slow
def test_too_many_unreadable_images_stop_the_run_and_are_named(
  scans, tmp_path, capsys
):
  data = {"source": "folder", "path": str(scans), "batch_size": 4}
  config = tiny.config(
    data=data | {"max_unreadable": 0.05}, train=_TRAIN, eval=_NO_EVAL
  )
  with pytest.raises(TrainingError, match=r"0\.05 of 20") as stop:
    runs.train(config, tmp_path / "run")
  for name in ("a/04.png: ", "b/07.png: "):
    assert f"{scans}/train/{name}" in str(stop.value)
  # With ten per cent allowed, the run resumes.
  more = tiny.config(
    data=data | {"max_unreadable": 0.1},
    train=_TRAIN | {"length": "10 steps", "log_every": "5 steps"},
    eval=_NO_EVAL,
  )
  runs.train(more, tmp_path / "run")
  assert "starting from scratch with step 0" in capsys.readouterr().out
  # Two epochs of five steps; each has both broken images.
  counts = [
    (line["step"], line["unreadable"])
    for line in run_outputs.read_metrics(tmp_path / "run")
    if "loss" in line
  ]
  assert counts[-2:] == [(5, 2), (10, 4)]


@pytest.mark.slow
def test_the_run_resumes_after_images_are_repaired(scans, tmp_path):
  """Earlier unreadable images do not count again after the resume."""
  config = tiny.config(
    data={"source": "folder", "path": str(scans), "batch_size": 4},
    train=_OFTEN | {"length": "8 steps"},
    eval=_NO_EVAL,
  )
  with pytest.raises(TrainingError, match="could not be read"):
    runs.train(config, tmp_path / "run")
  for name in ("a/04.png", "b/07.png"):
    shutil.copy(scans / "train" / "a" / "00.png", scans / "train" / name)
  runs.train(config, tmp_path / "run")
  runs.train(config, tmp_path / "whole")
  counts = {
    run: [
      line["unreadable"]
      for line in run_outputs.read_metrics(tmp_path / run)
      if "loss" in line
    ]
    for run in ("run", "whole")
  }
  # The step that read them may be saved before they are counted.
  assert counts["run"][-1] == counts["run"][4] <= 2
  assert counts["whole"] == [0] * 8


@pytest.mark.parametrize(
  ("batch_size", "counts", "stops"),
  [
    (10, [1, 1, 2, 2, 3, 3], None),  # one in each epoch of twenty images
    (10, [1, 2], 2),
    (10, [0] * 9 + [2], 10),  # after nine good epochs
    (15, [1, 2, 3], None),  # a step with images of two epochs
    (15, [1, 3], 2),
    (50, [3, 5, 8], None),  # a step longer than two epochs
    (50, [4], 1),
  ],
)
def test_unreadable_images_are_counted_per_epoch(
  tmp_path, batch_size, counts, stops
):
  """Allows one unreadable image per epoch: 5 % of twenty."""
  config = tiny.config(data={"max_unreadable": 0.05, "batch_size": batch_size})
  health = checkpoints.Health.create()
  watch = watch_lib.HealthMonitor(config, 20, BadImages(), health, tmp_path)
  found = None
  for step, count in enumerate(counts, 1):
    values = dict.fromkeys(watch_lib.COUNTS, jnp.int32(0))
    if watch.check(step, values | {"unreadable": jnp.int32(count)}):
      found = step
      break
  assert found == stops


@pytest.mark.parametrize(
  ("share", "count", "stops"), [(0.01, 1, False), (0.01, 2, True), (0, 1, True)]
)
def test_one_unreadable_image_does_not_stop_a_run_of_few(
  tmp_path, share, count, stops
):
  config = tiny.config(data={"max_unreadable": share, "batch_size": 4})
  health = checkpoints.Health.create()
  watch = watch_lib.HealthMonitor(config, 20, BadImages(), health, tmp_path)
  values = dict.fromkeys(watch_lib.COUNTS, jnp.int32(0))
  found = watch.check(1, values | {"unreadable": jnp.int32(count)})
  assert bool(found) == stops


@pytest.mark.slow
def test_changed_images_do_not_resume_a_run(scans, tmp_path):
  data = {"source": "folder", "path": str(scans), "batch_size": 4}
  config = tiny.config(
    data=data | {"max_unreadable": 1.0}, train=_TRAIN, eval=_NO_EVAL
  )
  runs.train(config, tmp_path / "run")
  (scans / "train" / "a" / "02.png").rename(scans / "train" / "a" / "03.png")
  with pytest.raises(ConfigError, match="names of the training data"):
    runs.train(config, tmp_path / "run")


@pytest.mark.slow
def test_a_broken_stream_does_not_lose_earlier_steps(tmp_path, monkeypatch):
  config = tiny.config(
    train={
      "length": "8 steps",
      "log_every": "1 steps",
      "save_every": "0 steps",
    },
    eval=_NO_EVAL,
  )
  runs.train(config, tmp_path / "whole")
  train_batches = RunData.train_batches

  def then_broken(self, start_step):
    yield from itertools.islice(train_batches(self, start_step), 6)
    raise TrainingError("a damaged file")

  with monkeypatch.context() as patch:
    patch.setattr(RunData, "train_batches", then_broken)
    with pytest.raises(TrainingError, match="a damaged file"):
      runs.train(config, tmp_path / "run")
  steps = [int(path.name) for path in (tmp_path / "run/checkpoints").iterdir()]
  assert steps[0] >= 4
  runs.train(config, tmp_path / "run")
  assert run_outputs.read_metrics(tmp_path / "run") == run_outputs.read_metrics(
    tmp_path / "whole"
  )
