"""Tests of starting from another patch size, image size or channel count."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from mae_jax.config import Config, EvalConfig
from mae_jax.models import resize_patches
from mae_jax.tools import reconstructor
from mae_jax.utils.errors import ConfigError
from tests.helpers import runs, tiny

COLOR = {
  "source": "photos",
  "channels": 3,
  "mean": (0.3,) * 3,
  "std": (0.4,) * 3,
}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
  """The workdir of a network with patches of 2 x 2 gray pixels."""
  return runs.pretrained(tmp_path_factory.mktemp("start"))


def without_learning(
  workdir: Any, data: dict[str, Any] | None = None, **settings: Any
) -> Config:
  """Returns a run with larger patches from that start at learning rate 0."""
  return tiny.config(
    data={"image_size": (16, 16), "eval_split": "", **(data or {})},
    model={"patch_size": (4, 4)},
    train={"length": "1 steps"},
    eval=EvalConfig(images=0),
    init_from=str(workdir),
    optim={"blr": 0.0, "warmup": "0 steps"},
    **settings,
  )


@pytest.mark.slow
def test_pre_training_resumes_with_four_times_larger_patches(start, tmp_path):
  config = without_learning(start, COLOR, init_adapt=True)
  runs.train(config, tmp_path)
  found = runs.params(tmp_path, config)["model"]
  before = runs.params(start, tiny.config())["model"]
  old, new = resize_patches.Patch(2, 2, 1), resize_patches.Patch(4, 4, 3)
  kernels = [x["encoder"]["patch_embed"]["kernel"] for x in (before, found)]
  np.testing.assert_array_equal(
    kernels[1], resize_patches.embedding(kernels[0], old, new)
  )
  for name in ("kernel", "bias"):
    first, second = (x["decoder"]["pred"][name] for x in (before, found))
    np.testing.assert_array_equal(
      second, resize_patches.prediction(first, old, new)
    )
  first, second = (
    x["encoder"]["stack"]["blocks"]["mlp"]["fc1"]["kernel"]
    for x in (before, found)
  )
  np.testing.assert_array_equal(first, second)


@pytest.mark.slow
def test_an_adapted_frozen_encoder_is_reported(start, tmp_path, capsys):
  alone = without_learning(
    start, init_adapt=True, objective={"trainable": "decoder"}
  )
  runs.train(alone, tmp_path)
  output = capsys.readouterr()
  assert "adapted to other patches and then not " in output.err + output.out


@pytest.mark.slow
def test_pre_training_resumes_with_larger_images(start, tmp_path):
  """Checks that only the fixed position table changes."""
  config = tiny.with_changes(
    without_learning(start),
    model={"patch_size": (2, 2)},
    data={"image_size": (12, 16)},
  )
  runs.train(config, tmp_path)
  found = runs.params(tmp_path, config)
  before = runs.params(start, tiny.config())
  jax.tree.map(np.testing.assert_array_equal, found, before)
  network = reconstructor.load(tmp_path, runs.devices_mesh())
  pixels = np.zeros((2, 12, 16, 1), np.uint8)
  hidden = network.masks("random", 0.5, 2, seed=0)
  assert network.predict(pixels, hidden).shape == (2, 48, 4)


@pytest.mark.slow
def test_fine_tuning_adapts_too(start, tmp_path):
  config = without_learning(start, task="finetune", init_adapt=True)
  runs.train(config, tmp_path)
  found = runs.params(tmp_path, config)["model"]["encoder"]
  before = runs.params(start, tiny.config())["model"]["encoder"]
  np.testing.assert_array_equal(
    found["patch_embed"]["kernel"],
    resize_patches.embedding(
      before["patch_embed"]["kernel"],
      resize_patches.Patch(2, 2, 1),
      resize_patches.Patch(4, 4, 1),
    ),
  )


@pytest.mark.parametrize("task", ["pretrain", "finetune"])
def test_nothing_is_adapted_without_init_adapt(start, tmp_path, task: str):
  with pytest.raises(ConfigError, match=r"or --config.init_adapt="):
    runs.train(without_learning(start, task=task), tmp_path)
