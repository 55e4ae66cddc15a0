"""Tests of models among other JAX code: meshes, guards, copies, pickles."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import mae_jax
from mae_jax.config import MeshConfig
from mae_jax.distributed import sharding

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def digits():
  return mae_jax.from_pretrained("digits")


@pytest.fixture(scope="module")
def wanted(digits):
  return digits.features(IMAGES).values


def _same(found, wanted):
  np.testing.assert_allclose(np.asarray(found), wanted, atol=1e-5, rtol=0)


def test_transformations(digits, wanted):
  def one(image):
    return digits.apply(digits.params, image[None])[0]

  _same(jax.vmap(one)(IMAGES), wanted)
  _same(jax.pmap(one)(IMAGES), wanted)
  _same(jax.lax.map(one, IMAGES), wanted)
  with jax.checking_leaks():
    _same(jax.jit(digits.apply)(digits.params, IMAGES), wanted)


@pytest.mark.slow
def test_sharded_images(digits, wanted):
  spec = PartitionSpec("x")
  for kind in AxisType.Auto, AxisType.Explicit:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    images = jax.device_put(IMAGES, NamedSharding(mesh, spec))
    if kind == AxisType.Auto:
      _same(jax.jit(digits.apply)(digits.params, images), wanted)
      continue
    with pytest.raises(mae_jax.ConfigError, match="explicit axes x"):
      jax.jit(digits.apply)(digits.params, images)
    with jax.set_mesh(mesh):  # of the caller: methods have their own
      _same(digits.features(IMAGES), wanted)
      digits.reconstruct(IMAGES)
      digits.attention(IMAGES[:1])


def test_a_transfer_guard_is_for_the_callers_code(digits):
  with jax.transfer_guard("disallow"):
    mae_jax.from_pretrained("digits").features(IMAGES, image_size=16)
    digits.reconstruct(IMAGES)
    digits.attention(IMAGES[:1])
    mae_jax.create_model(
      "vit_ti8", image_size=16, width=32, depth=1, heads=4, num_classes=2
    ).predict(IMAGES)


def test_a_mesh_of_any_names(wanted):
  for shape, names in (((2,), ("x",)), ((2, 1), sharding.AXES)):
    mesh = jax.make_mesh(shape, names, devices=jax.devices()[:2])
    model = mae_jax.from_pretrained("digits", mesh=mesh)
    _same(model.features(IMAGES), wanted)
  mesh = sharding.make_mesh(MeshConfig(fsdp=2))
  _same(mae_jax.from_pretrained("digits", mesh=mesh).features(IMAGES), wanted)


def test_parameters_from_anywhere(digits, wanted):
  for place in (jax.device_get, lambda x: jax.device_put(x, jax.devices()[3])):
    model = mae_jax.from_pretrained("digits")
    model.params = place(digits.params)
    _same(model.features(IMAGES), wanted)
    model.reconstruct(IMAGES)
    model.attention(IMAGES[:1])


def test_other_parameters_are_refused(digits):
  model = mae_jax.from_pretrained("digits")
  for params, message in (
    (None, "params is a NoneType"),
    (digits.params["model"], "a dict with decoder, encoder"),
    ({"model": {}}, "is missing"),
    (jax.tree.map(lambda x: x[None], digits.params), r"\(1, 48\), not \(48,\)"),
  ):
    with pytest.raises(mae_jax.ConfigError, match=message):
      model.params = params
  for params, images, message in (
    (digits.params["model"], IMAGES, "params is a dict"),
    (IMAGES, digits.params, "params is a ndarray"),
    (digits.params, list(IMAGES), "images is a list"),
    (digits.params, IMAGES[:0], "images is empty"),
  ):
    with pytest.raises(mae_jax.ConfigError, match=message):
      model.apply(params, images)
  with pytest.raises(mae_jax.ConfigError, match=r"only Model\.apply works"):
    jax.jit(model.features)(IMAGES)


def test_copies_are_apart(digits, wanted):
  for duplicate in (
    copy.copy(digits),
    copy.deepcopy(digits),
    pickle.loads(pickle.dumps(digits)),
  ):
    _same(duplicate.features(IMAGES), wanted)
    duplicate.params = jax.tree.map(lambda x: 0.9 * x, duplicate.params)
    assert np.abs(duplicate.features(IMAGES).values - wanted).max() > 1e-2
    _same(digits.features(IMAGES), wanted)


def test_train_can_be_pickled_and_inspected():
  assert pickle.loads(pickle.dumps(mae_jax.train)) is mae_jax.train
  assert "on_metrics" in inspect.signature(mae_jax.train).parameters


def test_apply_is_exported_for_any_batch_size(digits, wanted):
  (batch,) = jax.export.symbolic_shape("b")
  shape = jax.ShapeDtypeStruct((batch, *IMAGES.shape[1:]), np.uint8)
  program = jax.export.export(jax.jit(digits.apply))(digits.params, shape)
  for count in (1, len(IMAGES)):
    _same(program.call(digits.params, IMAGES[:count]), wanted[:count])


@pytest.mark.slow
def test_a_loop_of_ones_own():
  model = mae_jax.create_model(
    "vit_ti2", image_size=8, channels=1, width=32, depth=1, heads=4,
    num_classes=2,
  )  # fmt: skip
  labels = jnp.arange(8) % 2
  optimizer = optax.adam(1e-2)
  params = copy.deepcopy(model).params  # which the step may donate

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state):
    def loss(params):
      logits = model.apply(params, IMAGES)
      return optax.softmax_cross_entropy_with_integer_labels(
        logits, labels
      ).mean()

    value, slopes = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(slopes, state)
    return optax.apply_updates(params, updates), state, value

  state = optimizer.init(params)
  losses = []
  for _ in range(20):
    params, state, value = step(params, state)
    losses.append(float(value))
  assert losses[-1] < 0.5 * losses[0]
  model.params = params
  found = model.apply(model.params, IMAGES).argmax(axis=1)
  assert found.tolist() == labels.tolist()
