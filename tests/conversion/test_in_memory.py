"""Networks in memory are written like their checkpoints."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
import pytest

from mae_jax import checkpoints, conversion
from mae_jax.conversion import export_weights
from tests.conversion import test_round_trips
from tests.helpers import runs, sample_checkpoints
from tests.helpers.params import slow

CASES = [
  ("mae", "facebook"),
  ("mae", "transformers"),
  ("mae", "jax"),
  ("mean", "timm"),
  ("cls", "transformers"),
  ("probe", "facebook"),
  slow("probe", "timm"),
  slow("encoder", "timm"),
  slow("cls", "jax"),
]


@pytest.mark.parametrize(("kind", "to"), CASES)
def test_every_format(kind: str, to: str, tmp_path: pathlib.Path):
  start = sample_checkpoints.save(tmp_path / "start", kind)
  suffix = test_round_trips.SUFFIX[to]
  straight = test_round_trips.run(start, tmp_path / f"straight{suffix}", to)
  params, run = conversion.load_any(start, runs.devices_mesh(8, fsdp=4))
  weights = conversion.weights_of(params, run, "a network")
  out = tmp_path / f"out{suffix}"
  export_weights.write(weights, to, str(out))
  read = test_round_trips.arrays if to == "jax" else test_round_trips.tensors
  test_round_trips.assert_same(read(out), read(straight))
  end = test_round_trips.run(out, tmp_path / "end", "jax")
  after, before = map(checkpoints.read_metadata, (end, start))
  if kind != "probe" or to != "timm":  # BatchNorm is folded
    wanted = test_round_trips.arrays(start)
    test_round_trips.assert_same(test_round_trips.arrays(end), wanted)
    assert after.config == before.config
  assert after.class_names == before.class_names


@pytest.mark.parametrize("to", ["transformers", "facebook"])
def test_weights_of_other_programs(to: str, tmp_path: pathlib.Path):
  """Own position tables and a lack of the decoder are kept."""
  start = sample_checkpoints.save(tmp_path / "start", "mae")
  suffix = test_round_trips.SUFFIX[to]
  file = test_round_trips.run(start, tmp_path / f"a{suffix}", to)
  hints = conversion.ModelOverrides(no_decoder=True)
  params, run = conversion.load_any(file, runs.devices_mesh(), hints)
  params["model"]["encoder"]["pos_embed"] = jax.numpy.ones((1, 17, 48))
  weights = conversion.weights_of(params, run, str(file))
  assert weights.info.kind == "encoder"
  out = tmp_path / f"out{suffix}"
  export_weights.write(weights, to, str(out))
  again, _ = conversion.load_any(out, runs.devices_mesh())
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_averaged_parameters_and_the_encoder(tmp_path: pathlib.Path):
  classify = {"pooling": "cls", "ema": 0.9}
  start = sample_checkpoints.save(tmp_path / "start", "cls", classify=classify)
  params, run = conversion.load_any(start, runs.devices_mesh())
  only = conversion.ModelOverrides(encoder_only=True)
  weights = conversion.weights_of(params, run, "a network", only)
  assert weights.notes == ("the averaged parameters are used (classify.ema)",)
  token = weights.read("model/encoder/cls_token")
  wanted = params["averaged"]["encoder"]["cls_token"]
  np.testing.assert_array_equal(token, wanted)
  assert not [x for x in weights.shapes if "head" in x]
