"""Class weights in the loss equal PyTorch's, with scikit-learn's values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sklearn.utils import class_weight

from mae_jax.config import ClassifyConfig
from mae_jax.data import few_shot
from mae_jax.models import classifiers
from mae_jax.train import mixup
from mae_jax.utils import rng
from mae_jax.utils.errors import ConfigError
from tests.helpers import runs, tiny
from tests.helpers.commands import write_images

COUNTS = {"ant": 11, "bee": 2, "cow": 5}
LABELS = np.repeat(np.arange(3), [*COUNTS.values()])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("images")
  for name, count in COUNTS.items():
    write_images(root, (f"{name}/{number}.png" for number in range(count)))
  return root


def config(folder, task="finetune", accum_steps=1, **classify):
  return tiny.config(
    task=task,
    data={"source": "folder", "path": str(folder), "batch_size": 16},
    train={"length": "3 steps"},
    optim={"lr": 3e-3, "accum_steps": accum_steps},
    classify=ClassifyConfig(
      class_weights="balanced", norm_group=16, **classify
    ),
  )


def weights() -> np.ndarray:
  return class_weight.compute_class_weight(
    "balanced", classes=np.arange(3), y=LABELS
  )


def test_weights_are_scikit_learns(folder):
  task, data = runs.open_task(config(folder), runs.devices_mesh(1))
  np.testing.assert_allclose(task.class_weights, weights(), rtol=1e-6)
  assert task.class_weights[LABELS].mean() == pytest.approx(1)
  few = few_shot.limit_per_class(data.train_source, 4, 0)
  assert few_shot.class_counts(few) == (4, 2, 4)


MIXED = {"mixup": 0.8, "smoothing": 0.1, "head_std": 0.5}


@pytest.mark.slow
def test_fine_tuning_with_mixed_targets(folder):
  settings = config(folder, **MIXED)
  mesh = runs.devices_mesh(1)
  task, data = runs.open_task(settings, mesh)
  batch = next(task.train_batches(data, 0))
  _, losses = runs.steps(settings, 1, batch, devices=1)

  @jax.jit
  def reference(image, label):
    mix = mixup.sample_mix(
      rng.key(settings.train.seed, "mix", jnp.int32(0)),
      settings.data.image_size,
      mixup=0.8,
      cutmix=0.0,
      switch=0.5,
    )
    pixels = classifiers.normalize_pixels(image, settings)
    params = task.init().params[classifiers.MODEL]
    logits = task.classifier.model.apply(
      {"params": params}, mixup.mix_images(pixels, mix)
    )
    return logits, mixup.mix_labels(label, 3, 0.1, mix)

  found = reference(batch["image"], batch["label"])
  logits, targets = (torch.tensor(np.array(x)) for x in found)
  weight = torch.tensor(weights(), dtype=torch.float32)
  wanted = torch.nn.CrossEntropyLoss(weight)(logits, targets)
  assert losses[0] == pytest.approx(float(wanted), rel=1e-5)
  plain = torch.nn.CrossEntropyLoss()(logits, targets)
  assert abs(float(wanted / plain) - 1) > 1e-2


@pytest.mark.slow
def test_accumulation_and_devices_change_nothing(folder):
  _, one = runs.steps(config(folder, **MIXED), 3, devices=1)
  settings = config(folder, accum_steps=4, **MIXED)
  _, several = runs.steps(settings, 3, devices=2)
  np.testing.assert_allclose(one, several, rtol=1e-4)


def test_a_linear_probe(folder):
  """A class costs log 3 times its weight while all logits are 0."""
  settings = config(folder, "linprobe", head_std=0.0)
  task, data = runs.open_task(settings, runs.devices_mesh(1))
  batch = next(task.train_batches(data, 0))
  _, losses = runs.steps(settings, 1, batch, devices=1)
  wanted = np.log(3) * weights()[batch["label"]].mean()
  assert losses[0] == pytest.approx(wanted, rel=1e-5)


def test_label_efficiency_has_none(folder):
  with pytest.raises(ConfigError, match="class_weights='balanced' is a"):
    runs.open_task(config(folder, "label_efficiency"), runs.devices_mesh(1))
