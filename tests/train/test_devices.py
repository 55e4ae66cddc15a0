"""The same run on 1, 2, 4 and 8 devices, split in every way."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from mae_jax.steps import pretrain
from tests import tiny
from tests.train import runs

_CONFIG = tiny.config()


@functools.cache
def _one_device():
  return runs.steps(_CONFIG, 20)


_SLOW = pytest.mark.slow


@pytest.mark.parametrize(
  ("devices", "fsdp"),
  [
    (2, 1),
    (8, 4),
    *(pytest.param(*each, marks=_SLOW) for each in ((2, 2), (4, 2))),
    *(pytest.param(*each, marks=_SLOW) for each in ((8, 1), (8, 8))),
  ],
)
def test_losses_agree_over_20_steps(devices, fsdp):
  _, expected = _one_device()
  _, losses = runs.steps(_CONFIG, 20, devices=devices, fsdp=fsdp)
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  assert losses[-1] < losses[0]


def test_parameters_and_optimizer_are_split_over_fsdp():
  state, _ = runs.steps(_CONFIG, 1, devices=8, fsdp=4)
  kernel = state.params["model"]["encoder"]["stack"]["blocks"]["mlp"]["fc1"]
  kernel = kernel["kernel"]
  assert kernel.shape == (2, 32, 64)
  assert kernel.addressable_shards[0].data.shape == (2, 8, 64)
  adam = state.opt_state["model"][1]
  moment = adam.mu["encoder"]["stack"]["blocks"]["mlp"]["fc1"]["kernel"]
  assert moment.addressable_shards[0].data.shape == (2, 8, 64)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_masks_are_bit_equal(devices):
  """The noise of a step, drawn inside a program that splits the batch."""

  def noise(count: int) -> np.ndarray:
    mesh = runs.devices_mesh(count)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    draw = functools.partial(
      pretrain.mask_noise, seed=3, batch_size=32, num_patches=16
    )
    return np.asarray(jax.jit(draw, out_shardings=split)(7))

  np.testing.assert_array_equal(noise(devices), noise(1))
  rows = np.argsort(noise(1), axis=1)
  assert len(np.unique(rows, axis=0)) == 32  # one mask an example, not one each


def test_masks_differ_by_step_and_seed():
  draw = functools.partial(pretrain.mask_noise, batch_size=4, num_patches=16)
  first = draw(0, seed=0)
  assert np.abs(first - draw(1, seed=0)).max() > 0
  assert np.abs(first - draw(0, seed=1)).max() > 0
