"""BatchNorm equals PyTorch's, group by group, on any devices."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
import torch

from mae_jax.distributed import sharding
from mae_jax.models import batch_norm
from tests.helpers import runs


def draw(steps: int, batch: int, width: int) -> np.ndarray:
  random = np.random.default_rng(0)
  x = random.normal(size=(steps, batch, width)) * random.uniform(0.1, 3, width)
  return (x + random.normal(size=width)).astype(np.float32)


def test_five_batches_equal_pytorch():
  theirs = torch.nn.BatchNorm1d(6, affine=False, eps=1e-6)
  stats = batch_norm.Statistics.create(6)
  for x in draw(5, 16, 6):
    out, stats = batch_norm.normalize_batch(x, stats, 512)
    wanted = theirs(torch.from_numpy(x))
    np.testing.assert_allclose(out, wanted.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
      stats.mean, theirs.running_mean.numpy(), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
      stats.var, theirs.running_var.numpy(), rtol=1e-5, atol=1e-6
    )
  theirs.eval()
  x = draw(1, 3, 6)[0]
  np.testing.assert_allclose(
    batch_norm.normalize(x, stats),
    theirs(torch.from_numpy(x)).numpy(),
    rtol=1e-5,
    atol=1e-5,
  )


def test_groups_are_what_the_reference_has_on_each_device():
  """The running statistics are the mean of the devices' statistics."""
  x = draw(1, 24, 4)[0]
  out, stats = batch_norm.normalize_batch(x, batch_norm.Statistics.create(4), 8)
  means, variances = [], []
  for part, found in zip(np.split(x, 3), np.split(out, 3), strict=True):
    theirs = torch.nn.BatchNorm1d(4, affine=False, eps=1e-6)
    wanted = theirs(torch.from_numpy(part)).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    means.append(theirs.running_mean.numpy())
    variances.append(theirs.running_var.numpy())
  np.testing.assert_allclose(
    stats.mean, np.mean(means, 0), rtol=1e-5, atol=1e-6
  )
  np.testing.assert_allclose(stats.var, np.mean(variances, 0), rtol=1e-5)


@pytest.mark.parametrize("devices", [1, 8])
def test_devices_do_not_change_results(devices: int):
  x = draw(1, 32, 5)[0]
  run = functools.partial(
    batch_norm.normalize_batch, stats=batch_norm.Statistics.create(5), group=8
  )
  wanted, stats = jax.jit(run)(x)
  mesh = runs.devices_mesh(devices)
  placed = sharding.to_global(mesh, x, 32)
  found, others = jax.jit(run)(placed)
  difference = {
    "output": np.abs(found - wanted).max(),
    "mean": np.abs(others.mean - stats.mean).max(),
    "var": np.abs(others.var / stats.var - 1).max(),
  }
  print(f"largest differences, {devices=}: {difference}")
  assert difference["output"] <= 1e-6
  assert difference["mean"] <= 1e-6
  assert difference["var"] <= 1e-6
