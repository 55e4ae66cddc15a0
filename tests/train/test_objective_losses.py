"""Tests of training with a discriminator, and of training only a decoder."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mae_jax.models import discriminator, factory, flops
from mae_jax.train import objectives
from mae_jax.utils import rng
from mae_jax.utils.errors import ConfigError
from tests.helpers import numpy_reference, tiny
from tests.helpers.params import slow

TOTAL = 20


def adversarial(target: str = "norm_pix", **settings: Any):
  """Returns the objective, its network and random parameters."""
  config = tiny.config(
    objective={"target": target},
    discriminator={
      "type": "patch",
      "width": 8,
      "depth": 2,
      "ramp": (0.25, 0.75),
      "weight": 0.5,
      "gradient_penalty": 3.0,
      **settings,
    },
  )
  model = factory.masked_autoencoder(config)
  objective = objectives.Adversarial(config, model)
  objective.set_total_steps(TOTAL)
  return objective, model, objective.init(lambda name: rng.key(0, name))


def given() -> tuple[np.ndarray, np.ndarray]:
  random = np.random.default_rng(0)
  images = random.normal(size=(4, 8, 8, 1)).astype(np.float32)
  return images, random.uniform(size=(4, 16)).astype(np.float32)


DISCRIMINATORS = {
  "patch": discriminator.Discriminator,
  "image": discriminator.ImageDiscriminator,
}


@pytest.mark.parametrize(
  ("step", "game", "kind"),
  [
    slow(0, "hinge", "patch"),
    slow(10, "hinge", "patch"),
    slow(20, "hinge", "image"),
    slow(20, "non_saturating", "patch"),
  ],
)
def test_each_network_learns_only_from_its_own_loss(
  step: int, game: str, kind: str
):
  objective, model, params = adversarial(loss=game, type=kind)
  images, noise = given()
  network = DISCRIMINATORS[kind](8, 2)
  soft = jax.nn.softplus
  weight = 0.5 * np.clip((step / TOTAL - 0.25) / 0.5, 0, 1)

  def score(rival, x):
    return network.apply({"params": rival}, x)

  def of_generator(generator):
    out = model.apply({"params": generator}, images, noise)
    fake = objectives.generated_image(model, {"model": generator}, images, out)
    found = score(params["discriminator"], fake)
    fooled = -found if game == "hinge" else soft(-found)
    return out.loss + weight * fooled.mean()

  def of_discriminator(rival):
    out = model.apply({"params": params["model"]}, images, noise)
    fake = score(rival, objectives.generated_image(model, params, images, out))
    real = score(rival, images)
    if game == "hinge":
      output = jnp.maximum(0, 1 - real).mean() + jnp.maximum(0, 1 + fake).mean()
    else:
      output = soft(-real).mean() + soft(fake).mean()
    slopes = jax.grad(lambda x: score(rival, x).mean(axis=1).sum())(images)
    return output + 3 * 0.5 * (slopes**2).sum(axis=(1, 2, 3)).mean()

  (total, metrics), grads = jax.jit(
    jax.value_and_grad(objective.loss, argnums=1, has_aux=True),
    static_argnums=0,
  )(model, params, images, noise, step)
  own, wanted = jax.jit(jax.value_and_grad(of_generator))(params["model"])
  telling, theirs = jax.jit(jax.value_and_grad(of_discriminator))(
    params["discriminator"]
  )
  np.testing.assert_allclose(metrics["loss"], own, rtol=1e-5)
  np.testing.assert_allclose(total, own + telling, rtol=1e-5)
  np.testing.assert_allclose(metrics["generator_weight"], weight, atol=1e-6)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # noqa: E731
  jax.tree.map(close, grads["model"], wanted)
  jax.tree.map(close, grads["discriminator"], theirs)


@pytest.mark.parametrize("target", [slow("norm_pix"), "raw"])
def test_the_discriminator_sees_visible_patches_and_true_statistics(target):
  _, model, params = adversarial(target)
  images, noise = given()
  out = model.apply({"params": params["model"]}, images, noise)
  painted = objectives.generated_image(model, params, images, out)
  patches = numpy_reference.patchify(np.asarray(painted), (2, 2))
  true, mask = numpy_reference.patchify(images, (2, 2)), np.asarray(out.mask)
  np.testing.assert_array_equal(patches[mask == 0], true[mask == 0])
  pred = np.asarray(out.pred)
  if target == "norm_pix":
    std = np.sqrt(true.var(axis=-1, ddof=1, keepdims=True) + 1e-6)
    pred = pred * std + true.mean(axis=-1, keepdims=True)
  np.testing.assert_allclose(patches[mask == 1], pred[mask == 1], rtol=1e-5)


def test_a_gradient_penalty_of_zero_changes_nothing():
  objective, model, params = adversarial(gradient_penalty=0.0)
  images, noise = given()
  _, metrics = objective.loss(model, params, images, noise, jnp.int32(3))
  assert metrics["gradient_penalty"] == 0


def test_the_discriminator_has_its_own_optimizer_and_rate():
  config = tiny.config(
    discriminator={
      "type": "patch",
      "depth": 2,
      "lr": 3e-3,
      "b1": 0.3,
      "b2": 0.7,
    }
  )
  model = factory.masked_autoencoder(config)
  trained = objectives.Adversarial(config, model).optimizers["discriminator"]
  # At half of the network's peak rate, it is at half of its own peak.
  assert config.optim.lr * trained.relative_lr * 0.5 == pytest.approx(1.5e-3)
  grads = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
  theirs = torch.zeros(5, requires_grad=True)
  adam = torch.optim.Adam([theirs], lr=1.5e-3, betas=(0.3, 0.7))
  ours = jnp.zeros(5)
  state = trained.tx.init(ours)
  for grad in grads:
    theirs.grad = torch.tensor(grad)
    adam.step()
    direction, state = trained.tx.update(grad, state, ours)
    ours -= 0.5 * config.optim.lr * trained.relative_lr * direction
  np.testing.assert_allclose(ours, theirs.detach(), rtol=1e-5)


@pytest.mark.parametrize(
  ("changes", "text"),
  [
    ({"type": "pixel"}, "discriminator.type='pixel' is not known"),
    (
      {"loss": "wgan"},
      "discriminator.loss='wgan' is not known: known are hinge",
    ),
    ({"depth": 4}, r"discriminator.depth=4 halves .*\(8, 8\): .* at most 3"),
    (
      {"ramp": (0.5, 0.2)},
      r"discriminator.ramp=\(0.5, 0.2\) ends before it",
    ),
    (
      {"ramp": (0.5, 1.2)},
      r"discriminator.ramp=\(0.5, 1.2\) must be at most 1",
    ),
  ],
)
def test_settings_that_cannot_work_are_refused(changes, text: str):
  with pytest.raises(ConfigError, match=text):
    adversarial(**changes)


def test_a_frozen_encoder_has_no_moments_and_no_backward_pass():
  config = tiny.config(objective={"trainable": "decoder"})
  model = factory.masked_autoencoder(config)
  objective, plain = (
    objectives.Reconstruction(each, model) for each in (config, tiny.config())
  )
  assert objective.flops(model, 1) == plain.flops(
    model, 1
  ) - 2 * flops.masked_encoder(model, 1)
  params = jax.eval_shape(lambda: objective.init(lambda name: rng.key(0, name)))
  held = sum(
    leaf.size
    for leaf in jax.tree.leaves(
      jax.eval_shape(objective.optimizers["model"].tx.init, params["model"])
    )
  )
  decoder = sum(x.size for x in jax.tree.leaves(params["model"]["decoder"]))
  assert held == 2 * decoder + 1  # plus the step count
