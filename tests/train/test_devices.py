"""Tests that runs on 1, 2, 4 and 8 devices are equal for every sharding."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from mae_jax.utils import rng
from tests.helpers import runs, tiny
from tests.helpers.params import slow

_CONFIG = tiny.config()


@functools.cache
def _one_device():
  return runs.steps(_CONFIG, 20)


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "fsdp"), [(2, 1), (4, 2), (8, 4)])
def test_losses_are_equal_on_all_meshes_over_20_steps(devices, fsdp):
  _, expected = _one_device()
  _, losses = runs.steps(_CONFIG, 20, devices=devices, fsdp=fsdp)
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  assert losses[-1] < losses[0]


@pytest.mark.slow
def test_parameters_and_optimizer_state_are_sharded_over_fsdp():
  state, _ = runs.steps(_CONFIG, 1, devices=8, fsdp=4)
  kernel = state.params["model"]["encoder"]["stack"]["blocks"]["mlp"]["fc1"]
  kernel = kernel["kernel"]
  assert kernel.shape == (2, 32, 64)
  assert kernel.addressable_shards[0].data.shape == (2, 8, 64)
  adam = state.opt_state["model"][1]
  moment = adam.mu["encoder"]["stack"]["blocks"]["mlp"]["fc1"]["kernel"]
  assert moment.addressable_shards[0].data.shape == (2, 8, 64)


@pytest.mark.parametrize("mask", ["random", slow("block"), slow("grid")])
@pytest.mark.parametrize("devices", [slow(2), 4, slow(8)])
def test_masks_are_bit_equal_on_all_meshes(devices, mask: str):
  """Compares the noise of a step in programs that shard the batch."""
  model = tiny.model(objective={"mask": mask})

  def noise(count: int) -> np.ndarray:
    mesh = runs.devices_mesh(count)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    draw = jax.jit(
      lambda key: model.sample_noise(key, (32, 16, 16, 1)), out_shardings=split
    )
    with jax.set_mesh(mesh):
      return np.asarray(draw(rng.key(3, "mask", 7)))

  np.testing.assert_array_equal(noise(devices), noise(1))
  rows = np.argsort(noise(1), axis=1)
  assert len(np.unique(rows, axis=0)) == 32  # per example, not per device


@pytest.mark.slow
@pytest.mark.parametrize(
  "mask",
  [
    "random",
    slow("block"),
    slow("grid"),
  ],
)
def test_masks_differ_by_step(mask: str):
  """Without learning, the loss of a fixed batch still changes per step."""
  config = tiny.config(
    objective={"mask": mask}, optim={"blr": 0.0, "warmup": "0 steps"}
  )
  image = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), np.uint8)
  batch = {"image": image, "readable": np.ones(32, bool)}
  _, losses = runs.steps(config, 3, batch)
  same = np.ptp(losses) < 1e-5 * losses[0]
  assert same == (mask == "grid")  # the same batch at each step


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["block", "grid"])
def test_losses_are_equal_on_all_meshes_with_other_masks(mask: str):
  config = tiny.config(objective={"mask": mask})
  _, expected = runs.steps(config, 5)
  _, losses = runs.steps(config, 5, devices=8, fsdp=4)
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
