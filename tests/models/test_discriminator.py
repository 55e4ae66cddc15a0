"""The discriminators and their losses equal PyTorch's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mae_jax.models import discriminator
from mae_jax.train import objectives

WIDTH, DEPTH, SIZE = 4, 2, (8, 12)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module", params=["patch", "image"])
def network(request):
  """Builds the network with random parameters, no bias zero."""
  kind = discriminator.DISCRIMINATORS[request.param]
  model = kind(WIDTH, DEPTH)
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, *SIZE, 3))
  )
  leaves, tree = jax.tree.flatten(shapes)
  drawn = [0.3 * draw(*leaf.shape, seed=n) for n, leaf in enumerate(leaves)]
  return model, jax.tree.unflatten(tree, drawn)


def in_torch(model, variables, images: torch.Tensor, leaves=None):
  """Scores images [B, H, W, C] as [B, S]."""
  leaves = leaves or torch_leaves(variables)
  x = images.permute(0, 3, 1, 2)
  for number in range(DEPTH):
    kernel, bias = leaves[f"conv{number}"]
    x = F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, stride=2, padding=1)
    x = F.leaky_relu(x, 0.2)
  kernel, bias = leaves["score"]
  if type(model) is discriminator.ImageDiscriminator:
    into, shift = leaves["together"]
    x = F.leaky_relu(x.mean(dim=(2, 3)) @ into + shift, 0.2)
    return x @ kernel + bias
  x = F.conv2d(x, kernel.permute(3, 2, 0, 1), bias)
  return x.permute(0, 2, 3, 1).flatten(1)


def torch_leaves(variables):
  return {
    name: [
      torch.tensor(part[key], requires_grad=True) for key in ("kernel", "bias")
    ]
    for name, part in variables["params"].items()
  }


def test_scores_are_those_of_pytorch(network):
  model, variables = network
  images = draw(3, *SIZE, 3, seed=9)
  wanted = in_torch(model, variables, torch.tensor(images)).detach().numpy()
  scores = model.apply(variables, images)
  patches = SIZE[0] // 4 * (SIZE[1] // 4)
  single = type(model) is discriminator.ImageDiscriminator
  assert scores.shape == (3, 1 if single else patches)
  np.testing.assert_allclose(scores, wanted, rtol=1e-5, atol=1e-5)


def test_the_penalty_and_its_gradient_are_those_of_pytorch(network):
  model, variables = network
  images = draw(3, *SIZE, 3, seed=9)

  def penalty(params):
    return objectives.gradient_penalty(
      lambda x: model.apply({"params": params}, x), images
    )

  value, grads = jax.jit(jax.value_and_grad(penalty))(variables["params"])
  leaves, x = torch_leaves(variables), torch.tensor(images, requires_grad=True)
  scores = in_torch(model, variables, x, leaves).mean(dim=1).sum()
  (slopes,) = torch.autograd.grad(scores, x, create_graph=True)
  wanted = 0.5 * slopes.square().sum(dim=(1, 2, 3)).mean()
  wanted.backward()
  assert wanted > 0.01
  np.testing.assert_allclose(value, wanted.item(), rtol=1e-5)
  for name, (kernel, _) in leaves.items():
    np.testing.assert_allclose(
      grads[name]["kernel"], kernel.grad, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("game", ["hinge", "non_saturating"])
def test_games_and_their_gradients_are_those_of_pytorch(game: str):
  real, fake = 2 * draw(5, 7), 2 * draw(5, 7, seed=1)
  telling, fooling = objectives.GAN_LOSSES[game]
  theirs = [torch.tensor(x, requires_grad=True) for x in (real, fake)]
  if game == "hinge":
    wanted = F.relu(1 - theirs[0]).mean() + F.relu(1 + theirs[1]).mean()
    deceived = -theirs[1].mean()
  else:
    ones = torch.ones(5, 7)
    bce = F.binary_cross_entropy_with_logits
    wanted = bce(theirs[0], ones) + bce(theirs[1], 0 * ones)
    deceived = bce(theirs[1], ones)
  value, grads = jax.value_and_grad(telling, argnums=(0, 1))(real, fake)
  np.testing.assert_allclose(value, wanted.item(), rtol=1e-5)
  for found, each in zip(
    grads, torch.autograd.grad(wanted, theirs), strict=True
  ):
    np.testing.assert_allclose(found, each, rtol=1e-5, atol=1e-7)
  value, grads = jax.value_and_grad(fooling)(fake)
  np.testing.assert_allclose(value, deceived.item(), rtol=1e-5)
  (each,) = torch.autograd.grad(deceived, theirs[1])
  np.testing.assert_allclose(grads, each, rtol=1e-5, atol=1e-7)


def test_flops_on_paper_are_the_compilers(network):
  model, variables = network
  counted = (
    jax.jit(model.apply)
    .lower(variables, jnp.zeros((4, *SIZE, 3)))
    .cost_analysis()["flops"]
  )
  paper = 4 * discriminator.forward_flops(model, SIZE, 3)
  # The formulas count products with padding too.
  assert 0.7 * paper < counted < 1.1 * paper
