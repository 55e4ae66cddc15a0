"""Tests of the mesh and of the sharding of parameters and batches."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mae_jax import checkpoints
from mae_jax.config import MeshConfig
from mae_jax.distributed import sharding
from mae_jax.train import optim
from mae_jax.utils.errors import ConfigError
from tests.helpers import tiny


def mesh(fsdp: int = 1, devices: int = 8) -> jax.sharding.Mesh:
  return sharding.make_mesh(MeshConfig(fsdp=fsdp), jax.devices()[:devices])


def by_name(tree) -> dict:
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


@pytest.fixture(scope="module")
def vit_l() -> checkpoints.TrainState:
  """The state of a ViT-L run as ShapeDtypeStructs."""
  config = tiny.big("L/16")
  params, tx = tiny.shapes(config), optim.adamw(config.optim)
  return jax.eval_shape(
    lambda p: checkpoints.TrainState.create(
      {"model": p}, {"model": tx.init(p)}
    ),
    params,
  )


# By parameter: the axis of the stacked array that must be split.
SPLIT = {
  "encoder/patch_embed/kernel": (None, "fsdp"),
  "decoder/embed/kernel": (None, "fsdp"),
  "decoder/pred/kernel": ("fsdp", None),
  **{
    f"{side}/stack/blocks/{name}/kernel": spec
    for side in ("encoder", "decoder")
    for name, spec in {
      "attn/qkv": (None, "fsdp", None),
      "attn/proj": (None, None, "fsdp"),
      "mlp/fc1": (None, "fsdp", None),
      "mlp/fc2": (None, None, "fsdp"),
    }.items()
  },
}


@pytest.mark.parametrize("fsdp", [2, 8])
def test_kernels_are_split_and_the_rest_is_replicated(vit_l, fsdp: int):
  shardings = by_name(sharding.state_shardings(mesh(fsdp), vit_l))
  params = {
    name.removeprefix("params/model/"): each.spec
    for name, each in shardings.items()
    if name.startswith("params/")
  }
  kernels = {name for name in params if name.endswith("/kernel")}
  assert kernels == set(SPLIT)
  for name, spec in params.items():
    assert spec == PartitionSpec(*SPLIT.get(name, ())), name
  moments = [0, 0]
  for name, each in shardings.items():
    if not name.startswith("opt_state/model/"):
      continue
    parameter = next((n for n in params if name.endswith(f"/{n}")), None)
    if parameter is None:
      assert each.spec == PartitionSpec(), name
    else:
      assert each.spec == params[parameter], name
      moments["/nu/" in name] += 1
  assert moments == [len(params)] * 2
  for name in ("step", "health/skipped", "health/loss_mean"):
    assert shardings[name].spec == PartitionSpec()


def test_nearly_everything_of_a_large_model_is_split(vit_l):
  """Each of eight devices holds little more than an eighth."""
  shardings = sharding.state_shardings(mesh(8), vit_l)
  whole = part = 0
  for leaf, where in zip(
    jax.tree.leaves(vit_l), jax.tree.leaves(shardings), strict=True
  ):
    whole += leaf.size
    part += int(np.prod(where.shard_shape(leaf.shape)))
  assert whole / 8 < part < 1.02 * whole / 8


@pytest.mark.parametrize(
  ("path", "shape", "fsdp", "spec"),
  [
    ("encoder/stack/blocks/mlp/fc1/kernel", (2, 30, 8), 4, ()),
    (
      "encoder/stack/blocks/mlp/fc1/kernel",
      (2, 32, 7),
      4,
      (None, "fsdp", None),
    ),
    ("encoder/stack/blocks/mlp/fc2/kernel", (2, 32, 30), 4, ()),
    ("mlp/fc2/kernel", (7, 32), 4, (None, "fsdp")),
    ("encoder/cls_token", (1, 1, 32), 4, ()),
    ("encoder/norm/scale", (32,), 4, ()),
    ("something/new/kernel", (32, 32), 4, ()),
  ],
)
def test_one_array(path: str, shape, fsdp: int, spec):
  assert sharding.param_spec(path, shape, fsdp) == PartitionSpec(*spec)


@pytest.mark.parametrize("fsdp", [1, 2, 4, 8])
def test_mesh(fsdp: int):
  made = mesh(fsdp)
  assert dict(made.shape) == {"data": 8 // fsdp, "fsdp": fsdp}
  assert made.axis_names == sharding.AXES
  assert set(made.axis_types) == {jax.sharding.AxisType.Auto}
  assert sharding.make_mesh(MeshConfig(fsdp=fsdp)) == made


@pytest.mark.parametrize("fsdp", [3, 0, -1, 16])
def test_fsdp_must_divide_the_devices(fsdp: int):
  text = (
    f"mesh.fsdp={fsdp} does not divide the 8 devices; use one of 1, 2, 4, 8"
  )
  with pytest.raises(ConfigError, match=text):
    mesh(fsdp)


@pytest.mark.parametrize(
  ("batch", "nearest"),
  [(12, "8 and 16"), (3, "8$"), (0, "8$"), (-8, "8$"), (1025, "1024 and 1032")],
)
def test_devices_must_divide_the_batch(batch: int, nearest: str):
  text = rf"data.batch_size={batch} is not a multiple of the 8 devices; .*are? "
  with pytest.raises(ConfigError, match=text + nearest):
    sharding.check_batch(mesh(2), batch, "data.batch_size")


def test_a_batch_that_devices_divide_is_accepted():
  for batch in (8, 16, 1024):
    assert sharding.check_batch(mesh(2), batch, "data.batch_size") is None


@pytest.mark.parametrize(("fsdp", "devices"), [(1, 8), (4, 8), (2, 2), (1, 1)])
def test_a_global_batch_has_the_values_of_its_rows(fsdp: int, devices: int):
  where = mesh(fsdp, devices)
  rows = sharding.local_rows(where, 16)
  np.testing.assert_array_equal(rows, np.arange(16))
  batch = {
    "image": np.random.default_rng(0).integers(0, 256, (16, 3, 2), np.uint8),
    "label": np.arange(16),
  }
  there = sharding.to_global(where, batch, 16)
  for key, array in there.items():
    assert array.sharding == sharding.batch_sharding(where)
    np.testing.assert_array_equal(array, batch[key])
    for shard in array.addressable_shards:
      assert shard.data.shape[0] == 16 // devices
      np.testing.assert_array_equal(shard.data, batch[key][shard.index])


def test_prefetch_keeps_order_and_stays_ahead():
  taken = []

  def batches():
    for number in range(6):
      taken.append(number)
      yield {"image": np.full((8, 2), number)}

  stream = sharding.prefetch(mesh(), batches(), 8, ahead=2)
  assert int(next(stream)["image"][0, 0]) == 0
  assert taken == [0, 1, 2]
  rest = [int(batch["image"][5, 1]) for batch in stream]
  assert rest == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
  "error", [RuntimeError("Unable to initialize backend 'x'"), AssertionError()]
)
def test_a_platform_without_a_device_is_one_line(monkeypatch, error):
  def devices():
    raise error

  monkeypatch.setattr(jax, "devices", devices)
  with pytest.raises(ConfigError, match=r"JAX_PLATFORMS=cpu .*: unset it"):
    sharding.make_mesh(MeshConfig())
