"""The encoder with mask tokens, which MAE's speed is compared with."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import table2
from mae_jax.models import mae, masking
from tests import tiny
from tests.models.test_flops import products

BATCH = 4


@pytest.fixture(scope="module")
def bound() -> table2.WithMaskTokens:
  """The tiny network with random parameters."""
  model = table2.with_mask_tokens(tiny.model())
  keys = {"params": jax.random.key(0), "mask": jax.random.key(1)}
  shapes = jax.eval_shape(model.init, keys, jnp.zeros((1, 8, 8, 1)))
  return model.bind({"params": tiny.random_params(shapes["params"])})


def drawn(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Images of 4 x 4 patches, and noise for their masks."""
  random = np.random.default_rng(seed)
  images = random.normal(size=(BATCH, 8, 8, 1)).astype(np.float32)
  return images, random.uniform(size=(BATCH, 16)).astype(np.float32)


def test_hidden_pixels_do_not_matter_and_visible_ones_do(bound):
  (images, noise), (others, _) = drawn(), drawn(1)
  run = jax.jit(bound.__call__)
  out = run(images, noise)
  mask = np.asarray(out.mask).reshape(BATCH, 4, 4)
  hidden = mask.repeat(2, 1).repeat(2, 2)[..., None] > 0  # [B, 8, 8, 1]
  assert 0.7 < hidden.mean() < 0.8
  for places, same in ((hidden, True), (~hidden, False)):
    pred = run(np.where(places, others, images), noise).pred
    assert np.array_equal(pred, out.pred) == same


def test_what_is_shown_is_encoded_as_by_the_plain_encoder(bound):
  """In the order of the image, with the positions that it has there."""
  images, noise = drawn()
  masked = masking.random_masking(noise, 4)
  nothing = dataclasses.replace(masked, mask=jnp.zeros_like(masked.mask))
  found, wanted = bound.encoder(images, nothing), bound.features(images)
  np.testing.assert_array_equal(found.patches, wanted.patches)
  assert not np.array_equal(
    bound.encoder(images, masked).patches, wanted.patches
  )


def test_the_decoder_puts_each_token_where_it_was(bound):
  tokens, masked = bound.forward_encoder(*drawn())
  pred = bound.forward_decoder(tokens, masked)
  shuffled = np.take_along_axis(
    np.asarray(tokens.patches), np.asarray(masked.ids_shuffle)[..., None], 1
  )
  wanted = bound.decoder(
    mae.Tokens(tokens.cls, shuffled), dataclasses.replace(masked, num_keep=16)
  )
  np.testing.assert_allclose(pred, wanted, atol=1e-6)


@pytest.mark.parametrize("entry", table2.ENTRIES[:2])
def test_flops_on_paper_are_those_of_the_products(entry: table2.Entry):
  model = table2.network(entry, table2.configured(entry))
  images, noise = jnp.zeros((BATCH, 224, 224, 3)), jnp.zeros((BATCH, 196))
  keys = {"params": jax.random.key(0), "mask": jax.random.key(1)}
  params = jax.eval_shape(model.init, keys, images)
  jaxpr = jax.make_jaxpr(model.apply)(params, images, noise).jaxpr
  assert table2.flops_per_image(model) * BATCH == 3 * products(jaxpr)


def test_steps_are_told_beside_those_with_mask_tokens():
  times = {
    entry: table2.Timed(*np.full((2, 3), 2.0 if entry.mask_tokens else 1.0))
    for entry in table2.ENTRIES
  }
  compared = table2.ratios({}, times)
  assert set(compared["small: CPU time"].values()) == {2}
  assert table2.measured(times).count("2.00 to 2.00") == 2 * 4
  assert "1, against 8" in table2.summary(compared)


def test_speed_ups_are_relative_to_the_same_size():
  hours = {entry: entry.hours for entry in table2.ENTRIES}
  found = [f"{ratio:.1f}" for ratio in table2.speedups(hours).values()]
  assert found == ["2.8", "3.7", "3.5", "4.1"]  # as published
