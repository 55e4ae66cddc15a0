"""Tests of the flops, ratios and tables of `bench.table2`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import table2
from mae_jax.models import factory
from tests.models.test_flops import products

BATCH = 4


@pytest.mark.parametrize("entry", table2.ENTRIES[:2])
def test_counted_flops_equal_the_flops_of_the_products(entry: table2.Entry):
  config = table2.configured(entry)
  model = factory.masked_autoencoder(config)
  images, noise = jnp.zeros((BATCH, 224, 224, 3)), jnp.zeros((BATCH, 196))
  keys = {"params": jax.random.key(0), "mask": jax.random.key(1)}
  params = jax.eval_shape(model.init, keys, images)
  jaxpr = jax.make_jaxpr(model.apply)(params, images, noise).jaxpr
  assert table2.flops_per_image(config) * BATCH == 3 * products(jaxpr)


def test_steps_are_compared_with_steps_with_mask_tokens():
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
