"""Tests of gradient accumulation, and of steps that are not finite."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax import checkpoints
from mae_jax.config import MeshConfig
from mae_jax.distributed import sharding
from mae_jax.train import optim, step
from tests.helpers import tiny
from tests.helpers.params import slow

BATCH = 32


def draw() -> tuple[np.ndarray, np.ndarray]:
  random = np.random.default_rng(4)
  # Examples differ in scale, so a mean over wrong examples is detected.
  images = (
    random.normal(size=(BATCH, 8, 8, 1))
    * np.arange(1, BATCH + 1)[:, None, None, None]
  )
  noise = random.uniform(size=(BATCH, 16))
  return images.astype(np.float32) / 8, noise.astype(np.float32)


def loss_and_grads(accum_steps: int, mesh=None):
  model = tiny.model(objective={"target": "raw"})

  def loss_fn(params, part):
    return model.apply({"params": params}, *part).loss

  def run(params, batch):
    return step.loss_and_grads(loss_fn, params, batch, accum_steps)

  if mesh is None:
    return jax.jit(run)(tiny.params(), draw())
  params = tiny.params()
  where = sharding.state_shardings(mesh, params)
  with jax.set_mesh(mesh):
    return jax.jit(run, out_shardings=(sharding.replicated(mesh), where))(
      jax.device_put(params, where), sharding.to_global(mesh, draw(), BATCH)
    )


@pytest.fixture(scope="module")
def whole():
  """Loss and gradients of the whole batch on one device."""
  return loss_and_grads(1)


@pytest.mark.parametrize(
  ("accum_steps", "devices", "fsdp"),
  [
    (4, 1, 1),
    slow(1, 8, 1),
    slow(2, 8, 4),
    slow(4, 8, 2),
  ],
)
def test_accumulation_equals_the_whole_batch(
  whole, accum_steps: int, devices: int, fsdp: int
):
  mesh = None
  if devices > 1:
    mesh = sharding.make_mesh(MeshConfig(fsdp=fsdp))
    assert mesh.size == devices
  loss, grads = loss_and_grads(accum_steps, mesh)
  np.testing.assert_allclose(loss, whole[0], rtol=1e-6)
  assert jax.tree.structure(grads) == jax.tree.structure(whole[1])
  for got, want in zip(
    jax.tree.leaves(grads), jax.tree.leaves(whole[1]), strict=True
  ):
    # The gradient of the k bias is only rounding, so it needs a floor.
    largest = max(np.abs(want).max(), 1e-3)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * largest)


def test_accumulation_works_for_any_tree_of_parameters():
  def loss_fn(params, part):
    x, y = part
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)

  random = np.random.default_rng(0)
  x = random.normal(size=(12, 3)).astype(np.float32)
  y = random.normal(size=12).astype(np.float32)
  params = {"w": np.array([1.0, -2.0, 0.5], np.float32), "b": np.float32(0.3)}
  error = x @ params["w"] + params["b"] - y
  for accum_steps in (1, 3, 12):
    loss, grads = step.loss_and_grads(loss_fn, params, (x, y), accum_steps)
    np.testing.assert_allclose(loss, np.mean(error**2), rtol=1e-6)
    np.testing.assert_allclose(grads["b"], 2 * error.mean(), rtol=1e-5)
    np.testing.assert_allclose(
      grads["w"], 2 * (error[:, None] * x).mean(axis=0), rtol=1e-5
    )


CONFIG = tiny.config(optim={"lr": 0.1, "weight_decay": 0.05}).optim
TX = optim.adamw(CONFIG)
LR = optim.learning_rate(CONFIG, total_steps=10, warmup_steps=4)


@jax.jit
def take(state, loss, grads):
  optimizers, lr = {"model": step.RoleOptimizer(TX)}, LR(state.step)
  return step.update(state, optimizers, lr, loss, {"model": grads})


def start() -> checkpoints.TrainState:
  params = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([0.5, 0.25])}
  return checkpoints.TrainState.create(
    {"model": params, "other": {"bias": jnp.ones(2)}},
    {"model": TX.init(params), "other": ()},
  )


GRADS = {"kernel": jnp.array([[0.3, -4.0]]), "bias": jnp.array([1.0, -1.0])}
BAD = {
  "loss": (jnp.nan, GRADS),
  "infinite loss": (jnp.inf, GRADS),
  "gradient": (1.0, GRADS | {"bias": jnp.array([1.0, jnp.nan])}),
  "infinite gradient": (1.0, GRADS | {"bias": jnp.array([-jnp.inf, 0.0])}),
}


def bits(tree) -> list[bytes]:
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_a_good_step_equals_one_computed_by_hand():
  state = dataclasses.replace(start(), step=jnp.int32(2))
  after, metrics = take(state, jnp.float32(3.0), GRADS)
  # The first Adam update is the gradient's sign; lr is 0.1 * 2 / 4.
  kernel, lr = np.array([[1.0, -2.0]]), 0.05
  wanted = kernel - lr * (np.array([[1, -1]]) + 0.05 * kernel)
  np.testing.assert_allclose(after.params["model"]["kernel"], wanted, 1e-6)
  np.testing.assert_allclose(
    after.params["model"]["bias"], [0.5 - lr, 0.25 + lr], 1e-6
  )
  assert bits(after.params["other"]) == bits(state.params["other"])
  assert after.step == 3
  assert (after.health.skipped, after.health.consecutive_skipped) == (0, 0)
  assert set(metrics) == {"loss", "lr", "grad_norm"}
  assert metrics["loss"] == 3.0
  assert metrics["lr"] == pytest.approx(lr)
  norm = np.sqrt(0.3**2 + 16 + 2)
  assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_step_changes_nothing_but_the_counters(kind: str):
  state = start()
  for _ in range(2):
    state, _ = take(state, jnp.float32(1.0), GRADS)
  loss, grads = BAD[kind]
  after, _ = take(state, jnp.float32(loss), grads)
  assert bits(after.params) == bits(state.params)
  assert bits(after.opt_state) == bits(state.opt_state)
  assert after.step == 3
  assert (after.health.skipped, after.health.consecutive_skipped) == (1, 1)
  for leaf, old in zip(
    jax.tree.leaves(after), jax.tree.leaves(state), strict=True
  ):
    assert leaf.dtype == old.dtype


def test_counters_and_rate_after_bad_steps():
  state, seen = start(), []
  for bad in (False, True, True, False, True, False):
    loss = jnp.nan if bad else 1.0
    state, _ = take(state, jnp.float32(loss), GRADS)
    health = state.health
    seen.append((int(health.skipped), int(health.consecutive_skipped)))
  assert seen == [(0, 0), (1, 1), (2, 2), (2, 0), (3, 1), (3, 0)]
  # The schedule depends on the step number: bad steps do not delay it.
  _, metrics = take(state, jnp.float32(1.0), GRADS)
  progress = (6 - 4) / (10 - 4)
  wanted = 0.1 * 0.5 * (1 + np.cos(np.pi * progress))
  assert metrics["lr"] == pytest.approx(wanted, rel=1e-5)
  # Adam's own count did not increase, so its bias correction is right.
  counts = [
    int(leaf)
    for leaf in jax.tree.leaves(state.opt_state)
    if leaf.dtype == jnp.int32
  ]
  assert counts == [3]


def watched(*losses, readable=(True, True)):
  """Returns the health after steps with given losses, and its spikes."""
  health, spikes = checkpoints.Health.create(), []
  for loss in losses:
    health = step.update_health(
      health, jnp.float32(loss), jnp.array(readable), spike_factor=3.0
    )
    spikes.append(int(health.spikes))
  return health, spikes


def test_a_loss_far_above_its_mean_is_a_spike():
  _, spikes = watched(1.0, 0.9, 2.9, 3.5, 0.8, np.nan, np.inf, 10.0)
  assert spikes == [0, 0, 0, 1, 1, 1, 1, 2]


def test_the_running_mean_starts_at_the_first_loss_and_stays_finite():
  health, _ = watched(2.0, 1.0, np.nan)
  assert health.loss_mean == pytest.approx(0.98 * 2 + 0.02, rel=1e-6)


def test_replaced_images_are_counted():
  health, _ = watched(1.0, 1.0, readable=(True, False, False))
  assert health.unreadable == 4
