"""Encoders of all patches: mask tokens, and noise in the image."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.models import mae, masked_input, masking, patchify
from tests.helpers import numpy_reference, tiny

BATCH = 4


def network(hidden: str, **objective: Any) -> mae.MaskedAutoencoder:
  """Builds the tiny network with random parameters."""
  model = tiny.model(objective={"masked_input": hidden, **objective})
  keys = {"params": jax.random.key(0), "mask": jax.random.key(1)}
  shapes = jax.eval_shape(model.init, keys, jnp.zeros((1, 8, 8, 1)))
  return model.bind({"params": tiny.random_params(shapes["params"])})


@pytest.fixture(scope="module")
def bound() -> mae.MaskedAutoencoder:
  """The bound network with mask tokens."""
  return network("mask_tokens")


def images_and_noise(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Samples images of 4 x 4 patches, and noise for their masks."""
  random = np.random.default_rng(seed)
  images = random.normal(size=(BATCH, 8, 8, 1)).astype(np.float32)
  return images, random.uniform(size=(BATCH, 16)).astype(np.float32)


def test_hidden_pixels_do_not_matter_and_visible_ones_do(bound):
  (images, noise), (others, _) = images_and_noise(), images_and_noise(1)
  run = jax.jit(bound.__call__)
  out = run(images, noise)
  mask = np.asarray(out.mask).reshape(BATCH, 4, 4)
  hidden = mask.repeat(2, 1).repeat(2, 2)[..., None] > 0  # [B, 8, 8, 1]
  assert 0.7 < hidden.mean() < 0.8
  for places, same in ((hidden, True), (~hidden, False)):
    pred = run(np.where(places, others, images), noise).pred
    assert np.array_equal(pred, out.pred) == same


def test_what_is_shown_is_encoded_as_by_the_plain_encoder(bound):
  """Tokens are in the order of the image, with their positions there."""
  images, noise = images_and_noise()
  masked = masking.random_masking(noise, 4)
  nothing = dataclasses.replace(masked, mask=jnp.zeros_like(masked.mask))
  found = bound.forward_visible(images, nothing)
  wanted = bound.features(images)
  np.testing.assert_array_equal(found.patches, wanted.patches)
  assert not np.array_equal(
    bound.forward_visible(images, masked).patches, wanted.patches
  )


def test_the_decoder_puts_each_token_where_it_was(bound):
  tokens, masked = bound.forward_encoder(*images_and_noise())
  pred = bound.forward_decoder(tokens, masked)
  shuffled = np.take_along_axis(
    np.asarray(tokens.patches), np.asarray(masked.ids_shuffle)[..., None], 1
  )
  wanted = bound.decoder(
    mae.Tokens(tokens.cls, shuffled), dataclasses.replace(masked, num_keep=16)
  )
  np.testing.assert_allclose(pred, wanted, atol=1e-6)


def test_what_the_encoder_is_given_is_the_image_with_noise_in_it():
  model = network("noise", mask_ratio=0.5)
  images, order = images_and_noise()
  pixels = np.random.default_rng(5).normal(size=images.shape)
  tokens, masked = model.forward_encoder(images, (order, pixels))
  hidden = np.asarray(masked.mask)
  assert (hidden.sum(axis=1) == 8).all()
  m = hidden.reshape(BATCH, 4, 4).repeat(2, 1).repeat(2, 2)[..., None]
  wanted = model.features((images * (1 - m) + m * pixels).astype(np.float32))
  np.testing.assert_allclose(tokens.patches, wanted.patches, atol=1e-6)
  assert tokens.patches.shape == (BATCH, 16, 32)


def test_single_pixels_are_noise_and_they_alone_cost():
  model = network("pixel_noise", mask_ratio=0.3, target="raw")
  images, _ = images_and_noise()
  noise = model.sample_noise(jax.random.key(3), images.shape)
  tokens, masked = model.forward_encoder(images, noise)
  mask = np.asarray(masked.mask)  # [B, L, P]
  assert mask.shape == (BATCH, 16, 4)
  assert (mask.sum(axis=(1, 2)) == 64 - int(64 * 0.7)).all()
  m = np.asarray(patchify.unpatchify(jnp.asarray(mask), (2, 2), (8, 8)))
  wanted = model.features(jnp.asarray(images * (1 - m) + m * noise[1]))
  np.testing.assert_allclose(tokens.patches, wanted.patches, atol=1e-6)
  pred = np.random.default_rng(1).normal(size=mask.shape).astype(np.float32)
  squares = (pred - numpy_reference.patchify(images, (2, 2))) ** 2
  np.testing.assert_allclose(
    model.forward_loss(images, pred, mask), squares[mask > 0].mean(), rtol=1e-5
  )


@pytest.mark.parametrize("hidden", ["noise", "pixel_noise"])
def test_noise_has_the_deviation_of_the_images_and_is_another_each_time(hidden):
  model = tiny.model(objective={"masked_input": hidden})
  first, second = (
    np.asarray(model.sample_noise(jax.random.key(k), (64, 8, 8, 1))[1])
    for k in (0, 1)
  )
  assert abs(first.std() - 1) < 0.05
  assert abs(first.mean()) < 0.05
  assert abs((first * second).mean()) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("hidden", masked_input.MASKED_INPUTS)
def test_every_parameter_but_the_unused_token_is_learned(hidden: str):
  """The encoder has no parameters that MAE's lacks."""
  plain, model = tiny.model(), network(hidden)
  images, _ = images_and_noise()
  noise = model.sample_noise(jax.random.key(2), images.shape)
  params = model.variables["params"]
  unbound = model.unbind()[0]

  def loss(params: Any) -> Any:
    return unbound.apply({"params": params}, images, noise).loss

  grads = jax.jit(jax.grad(loss))(params)
  still = {
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
    if not np.abs(leaf).max()
  }
  assert still == (set() if hidden == "dropped" else {"decoder/mask_token"})
  keys = {"params": jax.random.key(0), "mask": jax.random.key(1)}
  shapes = jax.eval_shape(plain.init, keys, images)["params"]
  assert jax.tree.structure(shapes["encoder"]) == jax.tree.structure(
    params["encoder"]
  )
