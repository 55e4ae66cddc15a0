"""Checkpoints: whole, kept as many as asked, and loud where they do not fit."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax import checkpoints
from mae_jax import config as config_lib
from tests import tiny


@pytest.fixture
def state():
  params = {"model": {"kernel": jnp.arange(6.0).reshape(2, 3)}}
  moments = {"model": (jnp.ones(3), jnp.int32(4))}
  state = checkpoints.TrainState.create(params, moments)
  return state.replace(step=jnp.int32(7), skipped=jnp.int32(2))


@pytest.fixture
def saved(tmp_path, state):
  writer = checkpoints.Checkpointer(tmp_path, keep=2)
  for step in (5, 6, 7):
    writer.save(step, state, tiny.config())
  writer.close()
  return tmp_path


def like(tree):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )


def test_everything_comes_back(saved, state):
  reader = checkpoints.Checkpointer(saved, keep=2)
  assert reader.latest_step() == 7
  restored = reader.restore(7, like(state))
  reader.close()
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  assert jax.tree.structure(restored) == jax.tree.structure(state)


def test_only_the_last_are_kept(saved):
  names = {path.name for path in (saved / "checkpoints").iterdir()}
  assert names == {"6", "7"}


def test_a_checkpoint_holds_the_config(saved):
  text = next((saved / "checkpoints" / "7" / "config").iterdir()).read_text()
  stored = config_lib.from_config_dict(json.loads(text))
  assert stored == tiny.config()


@pytest.mark.parametrize("part", ["", "checkpoints", "checkpoints/6"])
def test_parameters_alone(saved, state, part):
  params = checkpoints.load_params(saved / part, like(state.params))
  jax.tree.map(np.testing.assert_array_equal, params, state.params)


@pytest.mark.parametrize(
  ("tree", "complaint"),
  [
    ({"kernel": (2, 4)}, r"model/kernel is \(2, 3\), not \(2, 4\)"),
    ({"kernel": (2, 3), "bias": (3,)}, "model/bias is missing"),
    ({}, "model/kernel is left over"),
  ],
)
def test_a_mismatch_names_the_parameter(saved, tree, complaint):
  where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  wanted = {
    "model": {
      name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)
      for name, shape in tree.items()
    }
  }
  with pytest.raises(config_lib.ConfigError, match=complaint):
    checkpoints.load_params(saved, wanted)


def test_no_checkpoint_names_the_place(tmp_path, state):
  complaint = f"no checkpoint in {tmp_path}"
  with pytest.raises(config_lib.ConfigError, match=complaint):
    checkpoints.load_params(tmp_path, like(state.params))
