"""Tests of fine-tuning: its start, exactness and measured accuracy."""

from __future__ import annotations

import dataclasses
import functools
import shutil

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from bench.lib import run_outputs
from mae_jax import checkpoints
from mae_jax.checkpoints import checksums
from mae_jax.config import ClassifyConfig, Config, EvalConfig
from mae_jax.data import pipeline
from mae_jax.models import patchify, pos_embed
from mae_jax.train import loop
from mae_jax.utils.errors import ConfigError
from tests.helpers import runs, tfds_data, tiny
from tests.helpers.params import slow

_PRETRAIN = tiny.config(
  train={"length": "3 steps", "log_every": "1 steps"},
  eval=EvalConfig(shots=(2,), num_trials=1, images=0),
)
# All random augmentations together.
_MIXED = ClassifyConfig(
  drop_path=0.3, smoothing=0.1, mixup=0.8, cutmix=1.0, erasing=0.25
)


def config(**sections) -> Config:
  sections = {
    "task": "finetune",
    "train": {"length": "4 steps", "log_every": "1 steps"},
    "optim": {"layer_decay": 0.75, "b2": 0.999},
    "classify": _MIXED,
  } | sections
  return tiny.config(**sections)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("pretrained")
  runs.train(_PRETRAIN, workdir)
  return workdir


def loaded(settings: Config, workdir) -> checkpoints.TrainState:
  mesh = runs.devices_mesh()
  task, data = runs.open_task(settings, mesh)
  return loop.initial_state(task, data, settings, mesh, workdir)


def test_fine_tuning_starts_from_the_encoder_and_a_new_head(
  pretrained, tmp_path
):
  settings = config(init_from=str(pretrained))
  params = loaded(settings, tmp_path).params["model"]
  before = runs.params(pretrained, _PRETRAIN)["model"]["encoder"]
  encoder = dict(params["encoder"])
  table = np.asarray(encoder.pop("pos_embed"))
  assert not table[:, 0].any()
  np.testing.assert_array_equal(table[0, 1:], pos_embed.sincos_2d((4, 4), 32))
  del before["norm"]  # fc_norm replaces it
  jax.tree.map(np.testing.assert_array_equal, encoder, before)
  head = np.asarray(params["head"]["kernel"])
  assert head.shape == (32, 10)
  assert 1e-5 < head.std() < 4e-5
  assert set(params) == {"encoder", "fc_norm", "head"}


@pytest.mark.slow
def test_positions_are_resized_for_larger_images(pretrained, tmp_path):
  settings = config(
    init_from=str(pretrained),
    data={"image_size": (8, 12)},
    classify=ClassifyConfig(pooling="cls"),
  )
  params = loaded(settings, tmp_path).params["model"]
  assert set(params) == {"encoder", "head"}
  wanted = pos_embed.resize(pos_embed.sincos_2d((4, 4), 32), (4, 4), (4, 6))
  np.testing.assert_array_equal(params["encoder"]["pos_embed"][0, 1:], wanted)
  assert "norm" in params["encoder"]


@pytest.fixture(scope="module")
def tuned(pretrained, tmp_path_factory):
  """Settings and workdir of a fine-tuned run."""
  workdir = tmp_path_factory.mktemp("tuned")
  settings = config(init_from=str(pretrained))
  runs.train(settings, workdir)
  return settings, workdir


@pytest.mark.slow
def test_fine_tuning_goes_on_with_the_head_of_the_same_classes(
  tuned, tmp_path, capsys
):
  first, workdir = tuned
  second = config(init_from=str(workdir))
  params = loaded(second, tmp_path).params["model"]
  wanted = runs.params(workdir, first)["model"]
  jax.tree.map(np.testing.assert_array_equal, dict(params), wanted)
  told = capsys.readouterr()
  assert "head" not in told.err
  assert f"the head of {workdir} is kept: its classes are the same" in told.out


@pytest.mark.slow
def test_a_new_head_is_said(tuned, tmp_path, capsys):
  first, workdir = tuned
  wanted = runs.params(workdir, first)["model"]
  mesh = runs.devices_mesh()
  second = config(init_from=str(workdir))
  task, data = runs.open_task(second, mesh)
  names = list(task.info.class_names)
  for changed, text in (
    (names[::-1], "its class 0 is '0', and that of this run is '9'"),
    (names[:-1], "it has 10 classes, and this run has 9"),
  ):
    task.prepare(
      dataclasses.replace(
        task.info, class_names=tuple(changed), eval_class_names=None
      )
    )
    params = loop.initial_state(task, data, second, mesh, tmp_path).params
    head = np.asarray(params["model"]["head"]["kernel"])
    assert head.shape == (32, len(changed))
    assert head.std() < 4e-5
    same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    same(dict(params["model"]["encoder"]), wanted["encoder"])
    told = capsys.readouterr().err
    assert f"{workdir} is not used, and a new one starts: {text}" in told


@pytest.mark.parametrize(
  ("changes", "text"),
  [
    (
      {"model": {"depth": 1, "width": 64}},
      "has model.width=32, not 64, model.depth=2, not 1: set "
      "--config.model.width=32 --config.model.depth=2$",
    ),
    (
      {"model": {"heads": 8}},
      "has model.heads=4, not 8: set --config.model.heads=4$",
    ),
    (
      {"model": {"patch_size": (4, 1)}},
      r"has model.patch_size=\(2, 2\), not \(4, 1\): set .*=2,2, or",
    ),
    ({"data": {"eval_split": ""}, "init_from": "nowhere"}, "no checkpoint in"),
  ],
)
def test_another_architecture_is_named(pretrained, tmp_path, changes, text):
  settings = config(**({"init_from": str(pretrained)} | changes))
  with pytest.raises(ConfigError, match=text):
    loaded(settings, tmp_path)


def test_a_missing_accuracy_is_reported(capsys):
  for split, told in (("test", False), ("", True)):
    settings = config(data={"eval_split": split})
    task, data = runs.open_task(settings, runs.devices_mesh(1))
    capsys.readouterr()
    task.evaluator(data)
    found = capsys.readouterr().err
    assert ("no accuracy: no image is held out" in found) == told
    assert ("--config.data.eval_split=SPLIT" in found) == told


@pytest.mark.slow
def test_other_channels_are_named(pretrained, tmp_path):
  for number in range(32):
    path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
  data = {
    "source": "folder",
    "path": str(tmp_path / "photos"),
    "channels": 3,
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
  }
  settings = config(init_from=str(pretrained), data=data)
  text = "has data.channels=1, not 3: set --config.data.channels=1, with as ma"
  with pytest.raises(ConfigError, match=text):
    loaded(settings, tmp_path / "run")


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
  settings = config(train={"length": "4 steps", "save_every": "2 steps"})
  runs.train(settings, tmp_path / "whole")
  interrupted = shutil.copytree(tmp_path / "whole", tmp_path / "interrupted")
  shutil.rmtree(interrupted / "checkpoints" / "4")
  runs.train(settings, interrupted)
  jax.tree.map(
    np.testing.assert_array_equal,
    runs.params(interrupted, settings),
    runs.params(tmp_path / "whole", settings),
  )
  assert run_outputs.read_metrics(interrupted) == run_outputs.read_metrics(
    tmp_path / "whole"
  )


@pytest.mark.slow
def test_devices_and_accumulation_do_not_change_losses():
  _, wanted = runs.steps(config(), 5)
  for accum, mesh in ((1, {"devices": 8, "fsdp": 4}), (4, {"devices": 2})):
    optim = {"layer_decay": 0.75, "b2": 0.999, "accum_steps": accum}
    _, losses = runs.steps(config(optim=optim), 5, **mesh)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)


@pytest.mark.slow
def test_accuracy_equals_a_plain_loop(tmp_path):
  """Evaluates 360 digits in batches of 32, so the last one is not full."""
  settings = config(
    classify=ClassifyConfig(),
    train={"length": "200 steps", "log_every": "50 steps"},
    optim={"lr": 3e-3},
  )
  report = runs.train(settings, tmp_path)
  task, data = runs.open_task(settings, runs.devices_mesh())
  params = runs.params(tmp_path, settings)["model"]
  model = task.train_step.keywords["model"]
  batches = pipeline.eval_batches(
    data.eval_source, settings.data, batch_size=1, rows=np.arange(1)
  )
  right = top5 = count = 0
  loss = 0.0
  forward = jax.jit(lambda x: model.apply({"params": params}, x))
  for batch in batches:
    x = patchify.normalize(
      batch["image"], settings.data.mean, settings.data.std
    )
    logits = np.asarray(forward(x), np.float64)[0]
    label = int(batch["label"][0])
    order = np.argsort(-logits)
    right += order[0] == label
    top5 += label in order[:5]
    loss += np.log(np.exp(logits).sum()) - logits[label]
    count += 1
  assert count == 360
  assert report.scalars["eval_top1"] == pytest.approx(right / count)
  assert report.scalars["eval_top5"] == pytest.approx(top5 / count)
  assert report.scalars["eval_loss"] == pytest.approx(loss / count, rel=1e-5)
  assert right / count > 0.3  # better than chance


def test_a_missing_final_norm_is_named(tuned, tmp_path):
  settings = config(
    init_from=str(tuned[1]),
    classify=ClassifyConfig(pooling="cls"),
  )
  with pytest.raises(ConfigError, match="has no final norm, which"):
    loaded(settings, tmp_path)


@pytest.mark.slow
def test_record_files_whose_labels_are_unknown_are_refused(tmp_path):
  features = {
    "image": tfds.features.Image(shape=(8, 8, 1)),
    "label": tfds.features.ClassLabel(names=["a", "b"]),
  }
  images = [
    {"image": np.full((8, 8, 1), 9 * k, np.uint8), "label": k % 2}
    for k in range(9)
  ]
  unknown = [each | {"label": -1} for each in images]
  tfds_data.prepare(
    tmp_path, "some", features, {"train": images, "test": unknown}
  )
  data = {"source": "tfds", "name": "some", "data_dir": str(tmp_path)}
  settings = config(data=data | {"batch_size": 8, "eval_split": "test"})
  text = "images of data.eval_split='test' have no label: use another split"
  task, data = runs.open_task(settings, runs.devices_mesh())
  with pytest.raises(ConfigError, match=text):
    task.evaluator(data)  # `loop.run` calls it before the first step


def _folder(root, numbers) -> dict:
  """Writes gray images; `numbers` are those of images by folder."""
  for name, number in numbers.items():
    (root / name).mkdir(parents=True)
    for level in range(number):
      Image.new("L", (8, 8), 60 * level).save(root / name / f"{level}.png")
  return {"source": "folder", "path": str(root), "batch_size": 2}


@pytest.mark.parametrize("task", ["finetune", "linprobe", "label_efficiency"])
def test_one_class_is_refused(tmp_path, task):
  data = _folder(tmp_path / "x", {"train/cat": 3, "val/cat": 1})
  settings = tiny.config(task=task, data=data, init_from="digits")
  with pytest.raises(ConfigError, match="are of one class, 'cat': every netw"):
    runs.open_task(settings, runs.devices_mesh())


@pytest.mark.slow
def test_the_folders_are_printed_and_a_poor_held_out_set_is_doubted(
  tmp_path, capsys
):
  root = tmp_path / "x"
  data = _folder(root, {"train/cat": 3, "train/dog": 2, "test/dog": 2})
  settings = config(data=data)
  task, data = runs.open_task(settings, runs.devices_mesh())
  assert capsys.readouterr().out == (
    f"images: 5 to train on, of {root}/train; 2 held out, of {root}/test\n"
  )
  report = task.evaluator(data)(task.init().params)
  assert report.text.endswith("always the largest class: 100.0 %")
  assert report.warning == (
    "all 2 evaluated images are of one class: their accuracy says nothing of "
    "the other classes"
  )


def test_images_without_labels_are_refused(tmp_path):
  for number in range(4):
    Image.new("L", (8, 8), 60 * number).save(tmp_path / f"{number}.png")
  settings = config(
    data={"source": "folder", "path": str(tmp_path), "batch_size": 2}
  )
  with pytest.raises(ConfigError, match="have no labels, which"):
    runs.open_task(settings, runs.devices_mesh())


@pytest.mark.parametrize(
  "trained",
  [
    slow("head"),
    slow("mlp"),
    slow("1 blocks"),
  ],
)
def test_frozen_parameters_do_not_change(trained: str):
  """Uses weight decay, and checks that all other parameters change."""
  classify = ClassifyConfig(drop_path=0.3, trainable=trained)
  settings = config(classify=classify, optim={"lr": 1e-2, "weight_decay": 0.3})
  before, _ = runs.steps(settings, 0)
  after, _ = runs.steps(settings, 3)
  old = checksums.flatten(jax.device_get(before.params["model"]))
  new = checksums.flatten(jax.device_get(after.params["model"]))
  for name, leaf in new.items():
    was = old[name]
    if not name.startswith("encoder/stack/blocks/"):
      leaf, was = leaf[None], was[None]
    for block, pair in enumerate(zip(leaf, was, strict=True)):
      changed = not np.array_equal(*pair)
      assert changed == may_change(name, block, trained), (name, block)


def may_change(name: str, block: int, trained: str) -> bool:
  if not name.startswith("encoder/stack"):
    return name.startswith(("head", "fc_norm"))
  if trained == "head" or block == 0:
    return False
  return trained == "1 blocks" or name.split("/")[3] in ("mlp", "norm2")


@pytest.mark.parametrize("trained", ["3 blocks", "0 blocks", "most", "-1"])
def test_an_unknown_value_of_trained_is_refused(trained: str):
  settings = config(classify=ClassifyConfig(trainable=trained))
  text = (
    f"classify.trainable='{trained}' is not known: .*'1 blocks' to '2 blocks"
  )
  with pytest.raises(ConfigError, match=text):
    runs.open_task(settings, runs.devices_mesh())


@pytest.mark.slow
def test_averaged_parameters_are_updated_and_used(tmp_path):
  decay = 0.9
  classify = dataclasses.replace(_MIXED, ema=decay)
  settings = config(classify=classify, train={"length": "3 steps"})
  states = [runs.steps(settings, n)[0].params for n in range(4)]
  wanted = jax.device_get(states[0]["model"])
  for each in states[1:]:
    wanted = jax.tree.map(
      lambda old, new: decay * old + (1 - decay) * np.asarray(new),
      wanted,
      each["model"],
    )
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
  jax.tree.map(close, states[3]["averaged"], wanted)
  # The parameters equal those of a run without averages.
  plain = config(train={"length": "3 steps"})
  jax.tree.map(
    close, states[3]["model"], runs.steps(plain, 3)[0].params["model"]
  )

  report = runs.train(settings, tmp_path)
  saved = runs.params(tmp_path, settings)
  task, data = runs.open_task(settings, runs.devices_mesh())
  scores = task.evaluator(data)({"model": saved["averaged"]}).scalars
  assert report.scalars == scores
  assert scores != task.evaluator(data)({"model": saved["model"]}).scalars
  again = config(init_from=str(tmp_path))
  encoder = loaded(again, tmp_path / "again").params["model"]["encoder"]
  jax.tree.map(
    np.testing.assert_array_equal, encoder, saved["averaged"]["encoder"]
  )


@pytest.mark.slow
def test_a_skipped_step_changes_no_average():
  classify = ClassifyConfig(ema=0.5)
  # After the step, nothing would be finite.
  settings = config(classify=classify, optim={"lr": 1e20, "warmup": "0 steps"})
  before, _ = runs.steps(settings, 1)
  assert int(before.health.skipped) == 0
  after, _ = runs.steps(settings, 2)
  assert int(after.health.skipped) == 1
  jax.tree.map(np.testing.assert_array_equal, after.params, before.params)


def test_held_out_images_without_classes_are_refused(tmp_path):
  """ImageNet's validation images come so out of their archive."""
  root = tmp_path / "x"
  data = _folder(root, {"train/cat": 2, "train/dog": 2, "val": 3})
  text = "2 classes and the held-out images none: sort them into folders"
  with pytest.raises(ConfigError, match=text):
    runs.open_task(config(data=data), runs.devices_mesh())
