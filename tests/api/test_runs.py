"""Tests of training from Python."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import signal
import warnings

import jax
import ml_collections
import numpy as np
import pytest

import mae_jax
from mae_jax.config import MeshConfig, to_dict
from tests.helpers import tiny

ENVIRONMENT = (
  "NPROC", "TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS",
  "TF_NUM_INTRAOP_THREADS", "XLA_FLAGS",
)  # fmt: skip


@pytest.fixture(scope="module")
def config():
  return tiny.config(
    train={"length": "4 steps", "log_every": "2 steps", "save_every": "2 steps"}
  )


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
  records = []
  workdir = tmp_path_factory.mktemp("run") / "mine"
  before = {x: signal.getsignal(x) for x in (signal.SIGINT, signal.SIGTERM)}
  environment = {name: os.environ.get(name) for name in ENVIRONMENT}
  run = mae_jax.train(
    config, workdir, on_metrics=records.append, progress=False
  )
  after = {x: signal.getsignal(x) for x in before}
  assert after == before
  # Of the variables that the commands or data/tf_setup.py set for a while.
  assert {name: os.environ.get(name) for name in ENVIRONMENT} == environment
  return run, records


def test_a_run_has_metrics_and_models(trained, config, capfd):
  run, records = trained
  assert run.config == config
  assert run.steps == [2, 4]
  loss = run.metrics["loss"]
  assert loss.steps.tolist() == [2, 4]
  assert [x["loss"] for x in records if "loss" in x] == loss.values.tolist()
  assert [x["step"] for x in records if "loss" in x] == [2, 4]
  images = np.zeros((1, *config.data.image_size, 1), np.uint8)
  apart = (
    run.model(2).features(images).values - run.model().features(images).values
  )
  assert np.abs(apart).max() > 0
  assert repr(run) == f"Run({run.workdir!r}, checkpoints at steps [2, 4])"
  assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_the_same_call_resumes(trained, config, tmp_path):
  run, _ = trained

  def fail(record):
    if record["step"] == 4:
      raise RuntimeError("stop here")

  with pytest.raises(RuntimeError, match="stop here"):
    mae_jax.train(config, tmp_path, on_metrics=fail, progress=False)
  assert mae_jax.Run(tmp_path).steps == [2]
  records = []
  resumed = mae_jax.train(
    config, tmp_path, on_metrics=records.append, progress=False
  )
  assert {record["step"] for record in records} == {4}
  jax.tree.map(
    np.testing.assert_array_equal, resumed.model().params, run.model().params
  )


@pytest.mark.slow
def test_a_recipe_by_name(tmp_path):
  run = mae_jax.train(
    "digits",
    tmp_path,
    changes={
      "train.length": "1 steps",
      "optim.warmup": "0 steps",
      "eval.images": 0,
      "eval.max_train": 100,
      "eval.num_trials": 1,
    },
    progress=False,
  )
  assert run.steps == [1]
  assert "eval_linear_5/MAE" in run.metrics


def test_a_report(trained, tmp_path):
  run, _ = trained
  run.report(tmp_path / "report.html")
  assert "<html" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_warnings_are_pythons(config, tmp_path):
  folder = tmp_path / "images"
  folder.mkdir()
  with pytest.raises(mae_jax.ConfigError, match="has no image") as caught:
    mae_jax.train(
      config.replace({"data.source": "folder", "data.path": str(folder)}),
      tmp_path / "run",
    )
  assert "--" not in str(caught.value)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    mae_jax.train(config, tmp_path / "other", progress=False)


def test_tasks_besides_training(trained, config, tmp_path):
  run, _ = trained
  changes = {"task": "evaluate", "eval.measure": "features"}
  measured = mae_jax.train(
    config.replace({**changes, "init_from": run.workdir}),
    tmp_path,
    progress=False,
  )
  assert measured.evaluation["checkpoint_task"] == "pretrain"
  assert measured.evaluation["scalars"]
  assert (measured.metrics, measured.steps) == ({}, [])
  assert run.evaluation is None
  with pytest.raises(mae_jax.ConfigError, match=r"read Run\.evaluation"):
    mae_jax.train(config, tmp_path, changes=changes, on_metrics=print)


def test_a_damaged_log(trained, tmp_path):
  run, _ = trained
  lines = (pathlib.Path(run.workdir) / "metrics.jsonl").read_text()
  log = tmp_path / "metrics.jsonl"
  log.write_text(f'{{"step": 1, "lo\n[1]\n{{}}\n{lines}{{"step": 9, "lo')
  broken = mae_jax.Run(tmp_path)
  with pytest.warns(UserWarning, match="is damaged, and is left out"):
    assert broken.metrics["loss"].steps.tolist() == [2, 4]
  log.write_text('{"step": 2, "loss": null}\n')
  assert np.isnan(mae_jax.Run(tmp_path).metrics["loss"].values).all()
  with pytest.raises(mae_jax.ConfigError, match="no checkpoint"):
    broken.model()


@pytest.mark.slow
def test_a_config_in_other_forms(config, tmp_path):
  path = tmp_path / "run"
  length = {"train.length": "3 steps"}
  for given in (to_dict(config), ml_collections.ConfigDict(to_dict(config))):
    run = mae_jax.train(given, path, changes=length, progress=False)
    assert run.steps == [2, 3]
  assert run.config == config.replace(length)


def test_nothing_is_logged(trained, caplog, tmp_path):
  run, _ = trained
  run.model().save_pretrained(tmp_path / "saved", format="jax")
  mae_jax.from_pretrained(tmp_path / "saved")
  assert not caplog.records


@pytest.mark.slow
def test_runs_at_once(config, tmp_path):
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    names = "a", "b", "b"
    started = [
      pool.submit(mae_jax.train, config, tmp_path / name, progress=False)
      for name in names
    ]
    errors = [each.exception() for each in started]
  assert errors[0] is None
  (refused,) = [error for error in errors if error]
  assert isinstance(refused, mae_jax.ConfigError)
  assert "in use by another run" in str(refused)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda path: mae_jax.Run(path), "has no metrics.jsonl"),
    (lambda path: mae_jax.Run("gs:/nowhere"), "has no metrics.jsonl"),
    (
      lambda path: mae_jax.train("digit", path),
      "digits",
    ),
    (
      lambda path: mae_jax.train("digits", path, changes={"data.batch": 1}),
      "^data.batch is not known: did you mean",
    ),
    (lambda path: mae_jax.train("digits", ""), "workdir is empty"),
    (lambda path: mae_jax.train("digits", None), "workdir=None"),
    (lambda path: mae_jax.train(None, path), "config=None is a NoneType"),
    (lambda path: mae_jax.train({"task": "pretrain"}, path), "config|data"),
    (lambda path: mae_jax.train("digits", path, changes="a=3"), "give a dict"),
    (
      lambda path: mae_jax.train("digits", path, on_metrics=3),
      "on_metrics=3 cannot be called",
    ),
  ],
)
def test_mistakes(tmp_path, call, message):
  with pytest.raises(mae_jax.ConfigError, match=message) as caught:
    call(tmp_path)
  assert "--" not in str(caught.value)


def test_a_missing_step(trained):
  run, _ = trained
  with pytest.raises(mae_jax.ConfigError, match="step=3 has no checkpoint"):
    run.model(3)


def test_cpu_devices_are_set_before_jax_starts(config, tmp_path):
  changed = config.replace({"mesh.cpu_devices": 3})
  assert changed.mesh == MeshConfig(cpu_devices=3)
  with pytest.raises(mae_jax.ConfigError, match="jax_num_cpu_devices"):
    mae_jax.train(changed, tmp_path)
