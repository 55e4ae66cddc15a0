"""Tests that random settings give a clear error or a run.

Samples depend only on this file and the package. Long versions are marked slow.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pathlib
import typing
from typing import Any

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image
from sklearn import datasets

from mae_jax.config import (
  UNITS,
  Config,
  from_config_dict,
  overrides,
  to_dict,
)
from mae_jax.utils.errors import ConfigError, TrainingError
from tests.helpers import runs, tiny

ROOT = pathlib.Path(__file__).parents[2]


def fuzz(examples: int):
  return hypothesis.settings(
    max_examples=examples,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=[hypothesis.Phase.generate],
  )


def names() -> list[str]:
  """Lists every setting as "section.field", or "field" at the top level."""
  result = []
  for name, value in to_dict(tiny.config()).items():
    nested = value if isinstance(value, dict) else None
    result += [f"{name}.{key}" for key in nested] if nested else [name]
  return result


def check_line(text: str):
  assert text.strip()
  assert "\n" not in text
  assert "Traceback (most" not in text
  assert len(text) < 600


# Values of any type for any setting.

NUMBERS = st.one_of(
  st.integers(-3, 100),
  st.integers(-(2**70), 2**70),
  st.sampled_from([10**400, -(10**400), 2**31, 2**63]),
  st.floats(),
  st.floats(-2, 2),
)
SCALARS = st.one_of(
  NUMBERS,
  st.none(),
  st.booleans(),
  st.text(max_size=8),
  st.sampled_from(["", "L/16", "1 step", "nan steps", "1e400 epochs", "0x8"]),
  st.binary(max_size=4),
)
VALUES = st.recursive(
  SCALARS,
  lambda inner: st.one_of(
    st.lists(inner, max_size=3),
    st.tuples(inner, inner),
    st.dictionaries(st.one_of(st.text(max_size=5), SCALARS), inner, max_size=2),
  ),
  max_leaves=4,
)


@fuzz(600)
@hypothesis.given(
  st.dictionaries(
    st.one_of(
      st.sampled_from([*names(), "data", "model", "eval"]), st.text(max_size=6)
    ),
    VALUES,
    min_size=1,
    max_size=3,
  )
)
def test_any_value_of_any_type_runs_or_is_refused(changes: dict[str, Any]):
  values = copy.deepcopy(to_dict(tiny.config()))
  for name, value in changes.items():
    section, _, field = name.rpartition(".")
    target = values.get(section) if section else values
    if isinstance(target, dict):
      target[field] = value
  try:
    config = from_config_dict(values)
  except ConfigError as error:
    check_line(str(error))
    return
  # Accepted values have the declared types and can be saved.
  assert from_config_dict(json.loads(json.dumps(to_dict(config)))) == config
  for section, kind in typing.get_type_hints(Config).items():
    if dataclasses.is_dataclass(kind):
      hash(getattr(config, section))


# Texts on the command line.


def command_line(*args: str) -> Config:
  """Reads arguments as `main` does, up to the config."""
  recipe = f"--config={ROOT / 'configs' / 'digits.py'}"
  settings, _ = overrides.split([recipe, *args])
  return overrides.load(settings)


def check_arguments(args):
  try:
    config = command_line(*args)
  except ConfigError as error:
    check_line(str(error))
  else:
    assert isinstance(config, Config)


TEXTS = st.one_of(
  st.sampled_from(
    [
      *("0", "1", "-1", "1_0", "1e3", "0.5", "9223372036854775808", "9" * 5000),
      *("nan", "inf", "-inf", "1e400", "None", "true", "false", "x", "'x'"),
      *("8", "8,8", "(8,8)", "(8", "8,8,8", "[1,2]", "{1:2}", "()", "(,)"),
      *("", " ", "\\", "\\n", "\n", "\x00", "lambda:0", "(" * 300, "-" * 9),
      *("L/16", "B/0", "float16", "5 steps", "1e300 epochs", "-1 epochs"),
    ]
  ),
  st.text(max_size=10),
  st.floats().map(str),
  st.integers().map(str),
)
KEYS = st.one_of(
  st.sampled_from(names()),
  st.sampled_from(names()).map(lambda name: name[:-1]),
  st.sampled_from(
    ["", "data", "model.", "data.mean[0]", "data.x.y", "data..x"]
  ),
  st.text(max_size=6),
)
ARGUMENTS = st.one_of(
  st.builds(lambda key, text: f"--config.{key}={text}", KEYS, TEXTS),
  st.builds(lambda key: f"--config.{key}", KEYS),
  st.builds(lambda key: f"--noconfig.{key}", KEYS),
  st.builds(lambda path: f"--config={path}", TEXTS),
)


@fuzz(400)
@hypothesis.given(args=st.lists(ARGUMENTS, min_size=1, max_size=3))
def test_any_text_on_the_command_line_runs_or_is_refused(args: list[str]):
  check_arguments(args)


@pytest.mark.slow
@fuzz(1500)
@hypothesis.given(args=st.lists(ARGUMENTS, min_size=1, max_size=3))
def test_more_texts_on_the_command_line_run_or_are_refused(args: list[str]):
  check_arguments(args)


# Plausible values, with which the whole task is built.

SIZES = st.one_of(
  st.tuples(st.sampled_from([4, 8, 12, 16]), st.sampled_from([4, 8, 16])),
  st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
UNIT = st.one_of(st.floats(0, 1), st.floats(-0.5, 1.5), st.just(1e-30))
RANGES = st.one_of(
  st.tuples(UNIT, UNIT).map(sorted).map(tuple), st.tuples(UNIT, UNIT)
)
POSITIVE = st.one_of(
  st.floats(0, 2), st.sampled_from([0.0, 1e-38, 1e-7, 1e30, 3e38, 1e300])
)
DURATIONS = st.builds(
  "{} {}".format,
  st.sampled_from([0, 1, 2, 3, 0.1, 2.5, 100, 1e9, 1e18]),
  st.sampled_from(UNITS),
)
PIXELS = st.lists(UNIT, min_size=1, max_size=4).map(tuple)
WIDTHS = st.one_of(st.sampled_from([8, 16, 32, 64]), st.integers(1, 64))
SMALL = st.integers(0, 8)
PLAUSIBLE: dict[str, st.SearchStrategy] = {
  "task": st.sampled_from(["pretrain", "finetune", "linprobe"]),
  "classify.pooling": st.sampled_from(["mean", "cls", "all"]),
  "classify.head_std": UNIT,
  "classify.drop_path": UNIT,
  "classify.smoothing": UNIT,
  "classify.mixup": POSITIVE,
  "classify.cutmix": POSITIVE,
  "classify.mix_switch": UNIT,
  "classify.mix_prob": UNIT,
  "classify.ema": UNIT,
  "classify.erasing": UNIT,
  "classify.class_weights": st.sampled_from(["", "balanced"]),
  "classify.trainable": st.sampled_from(
    ["all", "head", "mlp", "1 blocks", "9"]
  ),
  "classify.norm_group": st.integers(1, 64),
  "data.batch_size": st.one_of(st.sampled_from([8, 16]), st.integers(1, 64)),
  "data.image_size": SIZES,
  "data.crop_scale": RANGES,
  "data.crop_ratio": RANGES,
  "data.flip": st.booleans(),
  "data.max_unreadable": UNIT,
  "data.exif_rotate": st.booleans(),
  "data.value_range": st.sampled_from([(), (0.0, 255.0), (1.0,)]),
  "data.background": st.sampled_from(["white", "black", "drop", "none"]),
  "data.eval_crop": UNIT,
  "data.eval_fit": st.sampled_from(["crop", "squash"]),
  "data.eval_resample": st.sampled_from(["bicubic", "bilinear", "lanczos"]),
  "data.mean": PIXELS,
  "data.std": PIXELS,
  "data.channels": st.integers(1, 4),
  "data.layout": st.sampled_from(["auto", "splits", "classes", "none"]),
  "data.holdout": UNIT,
  "data.image_column": st.sampled_from(["", "image"]),
  "data.label_column": st.sampled_from(["", "label", "none"]),
  "data.max_image_pixels": st.integers(0, 2**31),
  "data.truncated_images": st.sampled_from(["skip", "decode", "none"]),
  "data.train_split": st.sampled_from(["train", "", "train[:1]"]),
  "data.eval_split": st.sampled_from(["validation", "", "nonsense"]),
  "data.shots": SMALL,
  "data.shots_seed": SMALL,
  "data.shuffle_buffer": st.integers(0, 2**31),
  "data.record_shards": st.integers(0, 2**31),
  "data.prefetch": SMALL,
  "data.crop_clipped": st.booleans(),
  "data.crop_fixed": UNIT,
  "data.color_jitter": UNIT,
  "data.randaugment": st.floats(0, 12),
  "data.randaugment_std": POSITIVE,
  "model.variant": st.sampled_from(["Ti/2", "S/4", "B/8", "L/16", "Ti/1"]),
  "model.width": WIDTHS,
  "model.depth": st.integers(0, 2),
  "model.heads": SMALL,
  "model.mlp_dim": st.integers(0, 64),
  "model.patch_size": SIZES,
  "model.decoder_width": WIDTHS,
  "model.decoder_depth": st.integers(0, 2),
  "model.decoder_heads": SMALL,
  "model.decoder_mlp_dim": st.integers(0, 64),
  "model.dtype": st.sampled_from(["float32", "bfloat16", "float16", "int8"]),
  "model.attention_chunk_mb": st.one_of(
    st.none(), st.floats(0, 1e9), st.integers(-1, 2)
  ),
  "model.remat": st.sampled_from(["auto", "none", "dots", "full", "all"]),
  "model.norm_eps": st.sampled_from([1e-12, 1e-6, 0.1, 1e9]),
  "model.activation": st.sampled_from(["gelu", "relu", "gelu_tanh", "mish"]),
  "model.unroll": st.one_of(SMALL, st.just(2**31 - 1)),
  "objective.mask_ratio": UNIT,
  "objective.mask": st.sampled_from(["random", "block", "grid", "none"]),
  "objective.target": st.sampled_from(["norm_pix", "raw", "pca", "hog"]),
  "objective.mask_rows": st.lists(
    st.sampled_from(["0110", "1111", "1010", "01"]), max_size=8
  ).map(tuple),
  "objective.mask_ratios": st.lists(UNIT, max_size=3).map(tuple),
  "objective.mask_strategies": st.lists(
    st.sampled_from(["random", "block", "grid", "given", "none"]), max_size=2
  ).map(tuple),
  "objective.mask_schedule": st.sampled_from(["random", "sequential", "often"]),
  "objective.masked_input": st.sampled_from(
    ["dropped", "mask_tokens", "noise", "pixel_noise", "zero"]
  ),
  "objective.pca_components": SMALL,
  "objective.contrast": st.sampled_from(["none", "image", "batch", "all"]),
  "objective.contrast_weight": POSITIVE,
  "objective.contrast_temperature": POSITIVE,
  "objective.contrast_patches": SMALL,
  "objective.trainable": st.sampled_from(["all", "decoder", "encoder"]),
  "discriminator.type": st.sampled_from(["none", "patch", "image", "pixel"]),
  "discriminator.loss": st.sampled_from(["hinge", "non_saturating", "wgan"]),
  "discriminator.weight": POSITIVE,
  "discriminator.ramp": RANGES,
  "discriminator.gradient_penalty": POSITIVE,
  "discriminator.width": SMALL,
  "discriminator.depth": SMALL,
  "discriminator.lr": POSITIVE,
  "discriminator.b1": UNIT,
  "discriminator.b2": UNIT,
  "init_adapt": st.booleans(),
  "objective.loss": st.sampled_from(["mse", "l1", "smooth_l1", "hinge"]),
  "objective.loss_on": st.sampled_from(["masked", "all", "visible"]),
  "optim.blr": POSITIVE,
  "optim.warmup": DURATIONS,
  "optim.weight_decay": POSITIVE,
  "optim.b1": UNIT,
  "optim.b2": UNIT,
  "optim.lr": POSITIVE,
  "optim.min_lr": POSITIVE,
  "optim.grad_clip": POSITIVE,
  "optim.accum_steps": SMALL,
  "optim.layer_decay": UNIT,
  "train.length": DURATIONS,
  "train.seed": st.one_of(SMALL, st.sampled_from([2**31 - 1, 2**32])),
  "train.log_every": DURATIONS,
  "train.save_every": DURATIONS,
  "train.save_every_minutes": POSITIVE,
  "train.keep": SMALL,
  "train.keep_every": DURATIONS,
  "train.keep_best": st.sampled_from(["", "eval_loss", "eval_top1", "top1"]),
  "train.patience": SMALL,
  "train.max_bad_steps": SMALL,
  "train.spike_factor": st.floats(1.1, 100),
  "train.shutdown_timeout": st.floats(1, 100),
  "train.trackers": st.lists(
    st.sampled_from(["mlflow", "trackio", "wandb"]), max_size=3
  ).map(tuple),
  "train.project": st.text(max_size=9),
  "train.profile": st.sampled_from(["", "1:2", "9:9", "2:1", "a"]),
  "mesh.fsdp": SMALL,
  "eval.every": DURATIONS,
  "eval.shots": st.lists(st.integers(0, 3000), max_size=3).map(tuple),
  "eval.num_trials": st.integers(0, 3),
  "eval.max_train": st.integers(0, 40),
  "eval.pooling": st.sampled_from(["mean", "cls", "all", "max"]),
  "eval.knn_k": st.integers(0, 3000),
  "eval.knn_temperature": POSITIVE,
  "eval.probe_l2": POSITIVE,
  "eval.raw_pixels": st.booleans(),
  "eval.images": SMALL,
  "eval.measure": st.sampled_from(["head", "features", "legs"]),
  "eval.classes": st.sampled_from(["auto", "all", "present", "some"]),
  "label_efficiency.task": st.sampled_from(
    ["finetune", "linprobe", "pretrain"]
  ),
  "label_efficiency.scratch": st.booleans(),
  "label_efficiency.shots": st.lists(st.integers(0, 9), max_size=3).map(tuple),
  "label_efficiency.seeds": SMALL,
}
NOT_FUZZED = {
  *(
    "init_from",
    "label_efficiency.pretrain",
    "data.source",
    "data.name",
    "data.path",
  ),
  *("data.data_dir", "mesh.cpu_devices", "train.compile_cache"),
  "mesh.overlap",
}


def test_every_setting_is_fuzzed():
  assert {*PLAUSIBLE, *NOT_FUZZED} == set(names())


@st.composite
def changes(draw, most: int) -> dict[str, Any]:
  """Samples few changes: with many, most fail at the first check."""
  chosen = draw(
    st.lists(
      st.sampled_from(sorted(PLAUSIBLE)), unique=True, min_size=1, max_size=most
    )
  )
  return {name: draw(PLAUSIBLE[name]) for name in chosen}


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> pathlib.Path:
  """A folder train/{china,flower} with six photographs, and val with two."""
  root = tmp_path_factory.mktemp("photos")
  for split, tops in (("train", (0, 100, 200)), ("val", (50,))):
    for name, photo in zip(
      ("china", "flower"), datasets.load_sample_images().images, strict=True
    ):
      folder = root / split / name
      folder.mkdir(parents=True)
      for top in tops:
        crop = Image.fromarray(photo[top : top + 24, 100:130])
        crop.save(folder / f"{top}.png")
  return root


def changed(
  changes: dict[str, Any], source: str, photos: pathlib.Path
) -> Config:
  values = to_dict(tiny.config(data={"source": source, "batch_size": 8}))
  if source == "folder":
    values["data"] |= {"path": str(photos), "channels": 3}
  # As a recipe returns it.
  values["optim"]["lr"] = values["optim"]["blr"]
  for name, value in changes.items():
    section, _, field = name.rpartition(".")
    (values[section] if section else values)[field] = value
  return from_config_dict(values)


def check_task(changes, source: str, devices: int, photos: pathlib.Path):
  """Builds a whole task, but computes only shapes and one batch."""
  try:
    config = changed(changes, source, photos)
    mesh = runs.devices_mesh(devices, config.mesh.fsdp)
    task, data = runs.open_task(config, mesh)
    for every in (config.train.log_every, config.eval.every):
      assert task.interval(every, "every") >= 0
  except ConfigError as error:
    check_line(str(error))
    return
  batch = next(task.train_batches(data, 0))
  data = config.data
  shape = (data.batch_size, *data.image_size, data.channels)
  assert batch["image"].shape == shape
  assert batch["image"].dtype == np.uint8
  state = jax.eval_shape(task.init)
  after, metrics = jax.eval_shape(task.train_step, state, batch)
  assert jax.tree.structure(after) == jax.tree.structure(state)
  assert metrics["loss"].shape == ()


SOURCES = st.sampled_from(["digits", "folder"])
DEVICES = st.sampled_from([1, 2, 4])


@fuzz(5)
@hypothesis.given(changes=changes(3), source=SOURCES, devices=DEVICES)
def test_plausible_values_build_or_are_refused(
  photos, changes, source, devices
):
  check_task(changes, source, devices, photos)


@pytest.mark.slow
@fuzz(30)
@hypothesis.given(changes=changes(6), source=SOURCES, devices=DEVICES)
def test_more_plausible_values_build_or_are_refused(
  photos, changes, source, devices
):
  check_task(changes, source, devices, photos)


def check_run(changes, source, devices, photos, workdir: pathlib.Path):
  short = {"train.length": "2 steps", "optim.warmup": "1 steps"}
  small = {"eval.num_trials": 1, "eval.max_train": 40}
  try:
    config = changed(small | changes | short, source, photos)
    mesh = {"devices": devices, "fsdp": config.mesh.fsdp}
    report = runs.train(config, workdir, **mesh)
  except (ConfigError, TrainingError) as error:
    check_line(str(error))
    return
  assert all(math.isfinite(value) for value in report.scalars.values())


@pytest.mark.slow
@fuzz(5)
@hypothesis.given(changes=changes(4), source=SOURCES, devices=DEVICES)
def test_short_runs(photos, tmp_path_factory, changes, source, devices):
  workdir = tmp_path_factory.mktemp("run")
  check_run(changes, source, devices, photos, workdir)
