"""Tests that other masks, targets and losses are exact and resumable."""

from __future__ import annotations

import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from bench.lib import run_outputs
from mae_jax.config import Config, EvalConfig, MeshConfig
from mae_jax.distributed import sharding
from mae_jax.models import masking, patchify
from mae_jax.tools import convert, reconstructor
from mae_jax.train.tasks import pretrain
from mae_jax.utils.errors import ConfigError
from tests.helpers import runs, tiny

# Each setting occurs at least once; settings are independent.
OBJECTIVES: dict[str, dict[str, Any]] = {
  "learned": {
    "masked_input": "mask_tokens",
    "target": "pca",
    "pca_components": 3,
    "mask_ratios": (0.5, 0.75),
    "mask_strategies": ("grid", "random"),
  },
  "noise": {
    "masked_input": "noise",
    "loss_on": "all",
    "mask": "given",
    "mask_rows": ("1010", "1111") * 2,
    "contrast": "batch",
    "contrast_patches": 2,
  },
  "pixels": {
    "masked_input": "pixel_noise",
    "target": "raw",
    "mask_ratios": (0.5, 0.8),
    "mask_schedule": "sequential",
  },
}
OBJECTIVES["discriminator"] = {
  "discriminator": {"type": "patch", "width": 8, "depth": 2, "ramp": (0, 0.5)}
}
PCA = {"target": "pca", "pca_components": 3}


def settings(
  discriminator: dict[str, Any] | None = None, **objective: Any
) -> Config:
  """Returns a run of four steps that logs each step."""
  return tiny.config(
    discriminator=discriminator or {},
    train={
      "length": "4 steps",
      "log_every": "1 steps",
      "save_every": "2 steps",
    },
    data={"eval_split": ""},
    eval=EvalConfig(images=0),
    objective=objective,
  )


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
  """Limits the number of images that a target is fitted on."""
  monkeypatch.setattr(pretrain, "FIT_IMAGES", 100)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_runs_resume_bit_for_bit_and_are_equal_on_one_device(
  name: str, tmp_path
):
  config = settings(**OBJECTIVES[name])
  whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
  runs.train(config, whole, devices=8, fsdp=4)
  expected = runs.params(whole, config)
  shutil.copytree(whole, interrupted)
  shutil.rmtree(interrupted / "checkpoints" / "4")
  runs.train(config, interrupted, devices=8, fsdp=4)
  jax.tree.map(
    np.testing.assert_array_equal, runs.params(interrupted, config), expected
  )
  assert run_outputs.read_metrics(interrupted) == run_outputs.read_metrics(
    whole
  )

  found = [line for line in run_outputs.read_metrics(whole) if "loss" in line]
  _, wanted = runs.steps_with_metrics(config, 4)
  for here, there in zip(found, wanted, strict=True):
    np.testing.assert_allclose(here["loss"], there["loss"], rtol=1e-5)
    for name in (x for x in here if x.startswith("loss_")):
      np.testing.assert_allclose(
        here[name], there[name], rtol=2e-5, atol=1e-6, err_msg=name
      )


def schedule(
  kind: str, total: int, ratios: int, strategies: int, seed: int = 0
):
  """Returns the mask number of each step."""
  choose = masking.MaskSchedule(kind, seed, total, ratios, strategies)
  return np.asarray(jax.vmap(choose)(jnp.arange(total))).tolist()


def test_sequential_masks_have_equal_parts_in_order():
  # Of 12 steps, each ratio has six and each strategy four, in a row.
  assert schedule("sequential", 12, ratios=2, strategies=3) == (
    [0] * 4 + [1] * 2 + [4] * 2 + [5] * 4
  )


@pytest.mark.parametrize(
  ("total", "count"), [(6, 4), (4, 3), (1000, 7), (2, 3)]
)
def test_a_sequential_schedule_uses_every_mask(total: int, count: int):
  choose = masking.MaskSchedule("sequential", 0, total, 1, count)
  found = [int(choose(jnp.int32(step))) for step in range(total + 3)]
  assert found == sorted(found)
  lengths = np.bincount(found[:total], minlength=count)
  assert lengths.max() - lengths.min() <= 1
  assert found[-1] == count - 1


def test_random_masks_are_uniform_and_depend_on_the_seed():
  found = schedule("random", 1200, ratios=2, strategies=3)
  counts = np.bincount(found, minlength=6)
  assert (np.abs(counts - 200) < 5 * np.sqrt(200)).all()
  assert found == schedule("random", 1200, ratios=2, strategies=3)
  assert found != schedule("random", 1200, ratios=2, strategies=3, seed=1)


@pytest.mark.slow
def test_a_target_is_fitted_on_the_training_stream():
  config = settings(**PCA)
  state, _ = runs.steps(config, 0)
  _, data = runs.open_task(config, runs.devices_mesh())
  stream = data.train_batches(0)
  rows = np.concatenate(
    [next(stream)["image"] for _ in range(4)]
  )  # of 32 images
  x = patchify.normalize(rows, config.data.mean, config.data.std)
  patches = np.asarray(patchify.patchify(x, (2, 2)), np.float64).reshape(-1, 4)
  fitted = jax.device_get(state.params["fitted"]["target"])
  np.testing.assert_allclose(fitted["mean"], patches.mean(axis=0), rtol=1e-5)
  variances = np.linalg.eigvalsh(np.cov(patches.T))[::-1][:3]
  np.testing.assert_allclose(
    (patches @ fitted["basis"]).var(axis=0, ddof=1), variances, rtol=1e-4
  )


@pytest.mark.slow
def test_a_fitted_target_is_saved_and_reused(tmp_path):
  config = settings(**PCA)
  runs.train(config, tmp_path / "first")
  before = runs.params(tmp_path / "first", config)["fitted"]
  again = tiny.with_changes(config, init_from=str(tmp_path / "first"))
  # A new fit on other images would give other components.
  again = tiny.with_changes(again, data={"crop_scale": (0.2, 0.3)})
  runs.train(again, tmp_path / "second")
  after = runs.params(tmp_path / "second", again)["fitted"]
  jax.tree.map(np.testing.assert_array_equal, before, after)

  # Reconstructions are patches of pixels, also for this target.
  network = reconstructor.load(tmp_path / "second", runs.devices_mesh())
  pixels = np.zeros((2, 8, 8, 1), np.uint8)
  hidden = network.masks("random", 0.5, 2, seed=0)
  assert network.predict(pixels, hidden).shape == (2, 16, 4)
  assert not network.normalized

  out = str(tmp_path / "x.pth")
  with pytest.raises(ConfigError, match=r"=pca, .*--encoder_only"):
    convert.convert(str(tmp_path / "second"), out, to="facebook")
  convert.convert(str(tmp_path / "second"), inspect=True)
  convert.convert(
    str(tmp_path / "second"), out, to="facebook", encoder_only=True
  )

  other = tiny.with_changes(settings(), init_from=str(tmp_path / "first"))
  with pytest.raises(
    ConfigError,
    match=r"objective.target=pca, .*target=pca, or leave init_from empty",
  ):
    runs.train(other, tmp_path / "third")
  # The first error names the setting that fixes it.
  for changes, text in (
    (
      {"objective": {"pca_components": 2}},
      "pca_components=3, not 2: set --config.objective.pca_components=3, or",
    ),
    (
      {"model": {"patch_size": (4, 4)}, "init_adapt": True},
      "2 x 2 x 1, which cannot be adapted: set --config.model.patch_size=2,2 "
      "--config.data.channels=1, or leave",
    ),
  ):
    with pytest.raises(ConfigError, match=text):
      runs.train(tiny.with_changes(again, **changes), tmp_path / "fourth")


def test_an_unknown_discriminator_loss_is_always_refused():
  with pytest.raises(ConfigError, match="'wgan' is not known: known"):
    tiny.config(discriminator={"loss": "wgan"})


@pytest.mark.parametrize(
  ("objective", "text"),
  [
    (
      {"masked_input": "drop"},
      "objective.masked_input='drop' is not known.*'dropped'",
    ),
    ({"target": "pixels"}, "objective.target='pixels' is not known: known"),
    (
      {"mask_schedule": "often"},
      "objective.mask_schedule='often' is not known: known are",
    ),
    (
      {"target": "pca"},
      r"objective.pca_components=96 is not in 1..4, the number of values per",
    ),
    (
      {"mask_ratios": (0.5, 0.6), "mask_strategies": ("random", "grid")},
      "objective.mask_ratios=0.6: a grid cannot keep 6 of 4 x 4 patches.* a "
      "mask_ratio of 0.06, 0.25",
    ),
    (
      {"mask_strategies": ("random", "gird")},
      "mask_strategies='gird' is not known.*'grid'",
    ),
    ({"mask_ratios": (0.5, 1.0)}, "objective.mask_ratios=1.0 keeps 0 of 16"),
    ({"mask_rows": ("1010",)}, "mask_rows defines masks that are not used"),
    ({"contrast": "batch"}, "for instance objective.contrast_patches=4"),
    (
      {"contrast": "image", "contrast_patches": 1},
      r"objective.contrast_patches=1 \(0 is all\), with 12 masked patches per "
      "image, leaves nothing to compare",
    ),
    (
      {"contrast": "image", "mask_ratio": 0.06},
      r"objective.contrast_patches=0 \(0 is all\), with 1 masked patches",
    ),
    ({"contrast": "images"}, "contrast='images' is not known.*'image'"),
    (
      {"contrast": "image", "masked_input": "pixel_noise"},
      "objective.contrast='image' needs whole masked patches",
    ),
    (
      {"mask": "given"},
      "objective.mask_rows= has 0 rows: write 4 rows per mask",
    ),
    (
      {"target": "pca", "pca_components": 2, "masked_input": "pixel_noise"},
      "objective.masked_input='pixel_noise' .* objective.target='pca'",
    ),
  ],
)
def test_settings_that_exclude_each_other_are_refused(objective, text: str):
  def build() -> None:
    config = tiny.config(objective=objective)
    runs.open_task(config, sharding.make_mesh(MeshConfig()))

  with pytest.raises(ConfigError, match=text):
    build()


@pytest.mark.slow
def test_training_only_the_decoder_needs_init_from(tmp_path):
  with pytest.raises(ConfigError, match="set init_from"):
    runs.train(settings(trainable="decoder"), tmp_path)


@pytest.mark.slow
def test_a_different_decoder_is_reported_by_its_settings(tmp_path):
  runs.pretrained(tmp_path / "first")
  config = tiny.with_changes(
    settings(),
    model={"decoder_depth": 2, "decoder_width": 32},
    init_from=str(tmp_path / "first"),
  )
  with pytest.raises(
    ConfigError,
    match=r"has model.decoder_width=16 model.decoder_depth=1.*, not 32, 2.*: "
    "set --config.model.decoder_width=16 --config.model.decoder_depth=1",
  ):
    runs.train(config, tmp_path / "second")


@pytest.mark.slow
def test_a_decoder_is_trained_alone_and_with_a_discriminator(tmp_path):
  """Checks a second stage that trains only the decoder."""
  runs.pretrained(tmp_path / "first")
  config = tiny.with_changes(
    settings(
      trainable="decoder",
      discriminator=OBJECTIVES["discriminator"]["discriminator"],
    ),
    init_from=str(tmp_path / "first"),
  )
  runs.train(config, tmp_path / "second")
  after = runs.params(tmp_path / "second", config)
  before = runs.params(tmp_path / "first", settings())["model"]
  jax.tree.map(
    np.testing.assert_array_equal, after["model"]["encoder"], before["encoder"]
  )
  moved = jax.tree.map(
    lambda a, b: float(np.abs(a - b).max()),
    after["model"]["decoder"],
    before["decoder"],
  )
  assert min(jax.tree.leaves(moved)) > 0
  assert set(after) == {"model", "discriminator"}
  # The exported parameters are those of the network.
  convert.convert(
    str(tmp_path / "second"), str(tmp_path / "x.pth"), to="facebook"
  )
  names = torch.load(tmp_path / "x.pth", weights_only=False)["model"]
  assert "decoder_pred.weight" in names
  assert not [name for name in names if "conv" in name]
