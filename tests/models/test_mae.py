"""The whole model: any shape, masks, features and stages."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.models import factory, mae, masking, patchify
from tests.helpers import numpy_reference, tiny
from tests.helpers.params import slow


def draw(*shape: int) -> np.ndarray:
  return np.random.default_rng(11).normal(size=shape).astype(np.float32)


def apply(model, params, *args, method=None, **kwargs):
  run = functools.partial(model.apply, method=method, **kwargs)
  return jax.jit(run)({"params": params}, *args)


@pytest.mark.parametrize(
  ("size", "channels", "patch"), [((8, 12), 2, (4, 3)), ((6, 4), 5, (3, 1))]
)
def test_any_rectangle_and_channel_count(size, channels: int, patch):
  config = tiny.config(
    data={
      "image_size": size,
      "channels": channels,
      "mean": (0.0,) * channels,
      "std": (1.0,) * channels,
    },
    model={"patch_size": patch, "depth": 1},
    objective={"mask_ratio": 0.5},
  )
  model = factory.masked_autoencoder(config)
  params = tiny.random_params(tiny.shapes(config))
  images = draw(3, *size, channels)
  rngs = {"mask": jax.random.key(1)}
  out = apply(model, params, images, rngs=rngs)
  length = size[0] * size[1] // (patch[0] * patch[1])
  assert out.pred.shape == (3, length, patch[0] * patch[1] * channels)
  assert out.mask.sum() == 3 * (length - length // 2)
  target = numpy_reference.normalize(numpy_reference.patchify(images, patch))
  wanted = numpy_reference.masked_mse(
    np.asarray(out.pred), target, np.asarray(out.mask)
  )
  np.testing.assert_allclose(out.loss, wanted, rtol=1e-5)


def test_no_table_is_a_parameter():
  model, images = tiny.model(), draw(1, 8, 8, 1)
  rngs = {"params": jax.random.key(0), "mask": jax.random.key(1)}
  variables = jax.eval_shape(model.init, rngs, images)
  assert set(variables) == {"params"}
  names = {
    path[-1].key
    for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])
  }
  assert names == {"kernel", "bias", "scale", "cls_token", "mask_token"}


def test_noise_decides_the_mask_and_a_key_the_noise():
  model, params, images = tiny.model(), tiny.params(), draw(4, 8, 8, 1)
  keys = [jax.random.key(n) for n in (1, 1, 2)]
  run = jax.jit(lambda key: model.apply({"params": params}, images, rngs=key))
  first, again, other = (run({"mask": key}) for key in keys)
  np.testing.assert_array_equal(first.mask, again.mask)
  assert (first.mask != other.mask).any()
  np.testing.assert_array_equal(first.mask.sum(axis=1), 12)
  noise = np.tile(np.arange(16, dtype=np.float32), (4, 1))
  out = apply(model, params, images, noise)
  np.testing.assert_array_equal(out.mask[:, :4], 0)
  np.testing.assert_array_equal(out.mask[:, 4:], 1)


def test_noise_of_a_wrong_shape_is_refused():
  model, images = tiny.model(), draw(4, 8, 8, 1)
  text = r"noise has shape \(1, 16\), but the patches have shape \(4, 16\)"
  with pytest.raises(ValueError, match=text):
    apply(model, tiny.params(), images, np.zeros((1, 16), np.float32))


def test_hidden_pixels_reach_the_loss_alone():
  model, params, images = tiny.model(), tiny.params(), draw(4, 8, 8, 1)
  noise = np.random.default_rng(0).uniform(size=(4, 16)).astype(np.float32)
  out = apply(model, params, images, noise)
  cover = np.asarray(out.mask).reshape(4, 4, 1, 4, 1)
  hidden = np.broadcast_to(cover, (4, 4, 2, 4, 2)).reshape(4, 8, 8, 1)
  changed = np.where(hidden, draw(1, 4, 8, 8, 1)[0][::-1], images)
  assert (changed != images).any()
  other = apply(model, params, changed.astype(np.float32), noise)
  np.testing.assert_array_equal(other.pred, out.pred)
  assert other.loss != out.loss


def test_features_are_of_every_patch_and_deterministic():
  model, params, images = tiny.model(), tiny.params(), draw(4, 8, 8, 1)
  tokens = apply(model, params, images, method=model.features)
  assert tokens.cls.shape == (4, 32)
  assert tokens.patches.shape == (4, 16, 32)
  # The order of visible patches does not matter to a transformer.
  order = np.stack([np.random.default_rng(n).permutation(16) for n in range(4)])

  def shuffled(module, x):
    ids = jnp.asarray(order)
    none_hidden = masking.Masking(
      ids, jnp.argsort(ids, axis=1), jnp.zeros(ids.shape), num_keep=16
    )
    return module.encoder(x, none_hidden)

  other = apply(model, params, images, method=shuffled)
  np.testing.assert_allclose(other.cls, tokens.cls, rtol=0, atol=2e-6)
  sorted_back = np.take_along_axis(
    np.asarray(other.patches), np.argsort(order, axis=1)[:, :, None], axis=1
  )
  np.testing.assert_allclose(sorted_back, tokens.patches, rtol=0, atol=2e-6)
  np.testing.assert_array_equal(mae.POOLINGS["cls"](tokens), tokens.cls)
  patches = np.asarray(tokens.patches)
  np.testing.assert_allclose(
    mae.POOLINGS["mean"](tokens), patches.mean(axis=1), rtol=0, atol=1e-6
  )
  side_by_side = [np.concatenate(list(each)) for each in patches]
  np.testing.assert_array_equal(mae.POOLINGS["all"](tokens), side_by_side)


@pytest.mark.parametrize(
  "objective",
  [
    slow({"loss": "l1"}),
    {"loss": "log_cosh", "loss_on": "all"},
    {"mask": "grid", "loss": "smooth_l1"},
  ],
)
def test_the_loss_is_the_one_that_was_asked_for(objective):
  model = tiny.model(objective=objective)
  random = np.random.default_rng(5)
  images = random.normal(size=(4, 8, 8, 1)).astype(np.float32)
  out = model.apply(
    {"params": tiny.params()}, images, rngs={"mask": jax.random.key(1)}
  )
  target = numpy_reference.normalize(
    np.asarray(patchify.patchify(images, (2, 2)))
  )
  error = np.asarray(out.pred, np.float64) - target
  costs = {
    "l1": np.abs(error),
    "log_cosh": np.log(np.cosh(error)),
    "smooth_l1": np.where(np.abs(error) < 1, error**2 / 2, np.abs(error) - 0.5),
  }[objective["loss"]].mean(axis=-1)
  counts = np.asarray(out.mask) > 0
  if objective.get("loss_on") == "all":
    counts = np.ones_like(counts)
  np.testing.assert_allclose(out.loss, costs[counts].mean(), rtol=1e-5)
  if objective.get("mask") == "grid":
    shown = (np.asarray(out.mask)[0] == 0).reshape(4, 4)
    np.testing.assert_array_equal(np.argwhere(shown) % 2, 0)
