"""Tests of saving and restoring, damaged checkpoints, and full disks."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import random
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench.lib import corruption
from mae_jax import checkpoints
from mae_jax.checkpoints import checksums, restore
from mae_jax.config import (
  EvalConfig,
  MeshConfig,
  from_config_dict,
)
from mae_jax.distributed import sharding
from mae_jax.utils.errors import ConfigError, TrainingError
from tests.helpers import tiny
from tests.helpers.disks import full_disk

RUN = checkpoints.CheckpointMetadata(
  tiny.config(), {"images": 9, "names": "abc"}
)


@pytest.fixture
def state():
  params = {"model": {"kernel": jnp.arange(6.0).reshape(2, 3)}}
  moments = {"model": (jnp.ones(3), jnp.int32(4))}
  state = checkpoints.TrainState.create(params, moments)
  health = state.health.replace(
    skipped=jnp.int32(2), loss_mean=jnp.float32(0.1)
  )
  return state.replace(step=jnp.int32(7), health=health)


@pytest.fixture
def saved(tmp_path, state):
  with checkpoints.Checkpointer(
    tmp_path, checkpoints.Retention(2), RUN
  ) as writer:
    for step in (5, 6, 7):
      writer.save(step, state.replace(step=jnp.int32(step)))
  return tmp_path


def like(tree):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )


def load(path):
  return checkpoints.load_any(path, sharding.make_mesh(MeshConfig()))


def test_everything_is_restored(saved, state):
  restored = checkpoints.restore_newest(saved, RUN, like(state))
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  assert jax.tree.structure(restored) == jax.tree.structure(state)


def test_only_the_newest_checkpoints_stay(saved):
  names = {path.name for path in (saved / "checkpoints").iterdir()}
  assert names == {"6", "7"}


def test_a_checkpoint_holds_the_config(saved):
  text = next((saved / "checkpoints" / "7" / "config").iterdir()).read_text()
  stored = from_config_dict(json.loads(text))
  assert stored == tiny.config()


@pytest.mark.parametrize("part", ["", "checkpoints", "checkpoints/6"])
def test_parameters_are_loaded_alone(saved, state, part):
  params, _ = load(saved / part)
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
  params, _ = load(saved)
  wanted = {"model": {name: np.zeros(shape) for name, shape in tree.items()}}
  with pytest.raises(ConfigError, match=complaint):
    checkpoints.check_shapes(saved, params, wanted)


def test_a_missing_checkpoint_is_an_error_with_its_path(tmp_path):
  complaint = f"no checkpoint in {tmp_path}"
  with pytest.raises(ConfigError, match=complaint):
    load(tmp_path)


@pytest.mark.slow
def test_any_damage_to_the_newest_is_noticed(
  saved, state, tmp_path_factory, capsys
):
  """Damages every file: missing, empty, truncated, with flipped bits.

  Restoring gives the saved state, bit for bit, or the checkpoint before it.
  """
  random_ = random.Random(0)
  spoilt = 0
  newest = saved / "checkpoints" / "7"
  files = [
    path.relative_to(saved) for path in newest.rglob("*") if path.is_file()
  ]
  assert len(files) > 15
  for name in files:
    content = (saved / name).read_bytes()
    for _, damaged in corruption.damages(content, random_, flips=1):
      copy = tmp_path_factory.mktemp("harmed") / "run"
      shutil.copytree(saved, copy)
      corruption.apply(copy / name, damaged)
      restored = checkpoints.restore_newest(copy, RUN, like(state))
      step = int(restored.step)
      jax.tree.map(
        np.testing.assert_array_equal,
        restored,
        state.replace(step=jnp.int32(step)),
      )
      output = capsys.readouterr().err
      aside = [p.name for p in (copy / "checkpoints").glob("7.broken-*")]
      if step == 7:
        assert (output, aside) == ("", [])
      else:
        assert step == 6
        assert f"{copy}/checkpoints/7 cannot be read (" in output
        assert aside[0] in output
        spoilt += 1
  assert spoilt > 30


def test_a_half_deleted_and_a_foreign_directory(saved, state, capsys):
  shutil.rmtree(saved / "checkpoints" / "7" / "opt_state")
  (saved / "checkpoints" / "99").mkdir()
  (saved / "checkpoints" / "99" / "notes.txt").write_text("mine")
  restored = checkpoints.restore_newest(saved, RUN, like(state))
  assert restored.step == 6
  output = capsys.readouterr().err
  assert "99.broken" in output
  assert "7.broken" in output
  kept = list((saved / "checkpoints").glob("99.broken-*/notes.txt"))
  assert kept[0].read_text() == "mine"
  # That step can be saved again.
  with checkpoints.Checkpointer(saved, checkpoints.Retention(2), RUN) as writer:
    writer.save(7, state)
  assert checkpoints.restore_newest(saved, RUN, like(state)).step == 7


def test_no_readable_checkpoint_is_an_error(saved, state):
  for path in (saved / "checkpoints").rglob("manifest.ocdbt"):
    path.unlink()
  for _ in range(2):  # also the next time
    with pytest.raises(ConfigError, match=r"no checkpoint in .* can be"):
      checkpoints.restore_newest(saved, RUN, like(state))
  assert {p.name for p in (saved / "checkpoints").iterdir()} == {"6", "7"}


def test_only_broken_checkpoints_is_an_error(saved, state):
  (saved / "checkpoints" / "7").rename(saved / "checkpoints" / "7.broken-1")
  shutil.rmtree(saved / "checkpoints" / "6")
  with pytest.raises(ConfigError, match="set aside before"):
    checkpoints.restore_newest(saved, RUN, like(state))


def test_a_disk_error_does_not_set_a_checkpoint_aside(
  saved, state, monkeypatch
):
  def fail(*args):
    raise OSError(errno.EIO, "Input/output error", "loop/metadata")

  monkeypatch.setattr(restore, "_read_loop", fail)
  with pytest.raises(OSError, match="Input/output error"):
    checkpoints.restore_newest(saved, RUN, like(state))
  assert {p.name for p in (saved / "checkpoints").iterdir()} == {"6", "7"}


def test_damaged_parameters_are_not_loaded(saved, state):
  data = max(
    (saved / "checkpoints" / "7" / "params").rglob("d/*"),
    key=lambda path: path.stat().st_size,
  )
  corruption.apply(
    data, corruption.flip_bit(data.read_bytes(), random.Random(0))
  )
  with pytest.raises(ConfigError, match=r"7 cannot be read .*another"):
    load(saved)


def test_a_checksum_depends_on_each_bit_and_not_on_sharding():
  rng = np.random.default_rng(0)
  tree = {
    "float": rng.normal(size=(8, 5)).astype(np.float32),
    "half": jnp.asarray(rng.normal(size=(8, 3)), jnp.bfloat16),
    "count": np.int32(7),
  }
  plain = checksums.checksum(tree)
  mesh = jax.sharding.Mesh(jax.devices(), "d")
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
  spread = {**tree, "float": jax.device_put(tree["float"], split)}
  assert checksums.checksum(spread) == plain
  for name in ("float", "half"):
    data = np.asarray(tree[name])
    words = data.view(np.uint16 if name == "half" else np.uint32)
    for bit in range(words.itemsize * 8):
      other = words.copy()
      other.flat[rng.integers(other.size)] ^= words.dtype.type(1 << bit)
      changed = {**tree, name: other.view(data.dtype)}
      assert checksums.checksum(changed) != plain
  assert checksums.checksum({**tree, "float": tree["float"][::-1]}) != plain
  renamed = {("other" if k == "half" else k): v for k, v in tree.items()}
  assert checksums.checksum(renamed) != plain


def test_large_and_small_arrays_have_equal_checksums(monkeypatch):
  tree = {"a": jnp.arange(3 * 5 * 7.0).reshape(3, 5, 7), "b": jnp.int32(3)}
  here = checksums.checksum(tree)
  monkeypatch.setattr(checksums, "_is_small", lambda leaf: False)
  assert checksums.checksum(tree) == here


def test_a_different_run_is_refused_and_the_difference_named(saved, state):
  config = tiny.config(
    model={"width": 64},
    train={"seed": 3, "length": "9 epochs"},
    data={"crop_scale": (0.5, 1.0), "source": "folder", "holdout": 0.1},
  )
  run = checkpoints.CheckpointMetadata(config, {"images": 8, "names": "abc"})
  with pytest.raises(ConfigError) as error:
    checkpoints.restore_newest(saved, run, like(state))
  text = str(error.value)
  for part in (
    "model.width was 32, is 64",
    "train.seed was 0, is 3",
    "data.crop_scale was",
    "data.holdout was 0.0, is 0.1",
    "images of the training data: was 9, is 8",
    f"init_from={saved}",
  ):
    assert part in text
  assert "length" not in text
  assert "names" not in text
  assert (saved / "checkpoints" / "7").exists()


def test_a_smaller_batch_is_refused_with_the_way_out(saved, state):
  before = tiny.config().data.batch_size
  config = tiny.config(data={"batch_size": before // 2})
  run = checkpoints.CheckpointMetadata(config, RUN.data)
  with pytest.raises(ConfigError, match="batch_size was") as error:
    checkpoints.restore_newest(saved, run, like(state))
  wanted = (
    f"If a batch of {before} does not fit into memory, --config.optim.acc"
  )
  assert wanted in str(error.value)


@pytest.mark.parametrize(
  "changes",
  [
    {"train": {"length": "90 epochs", "log_every": "3 steps", "keep": 9}},
    {"eval": EvalConfig(images=0)},
    {"mesh": MeshConfig(fsdp=2)},
    {"model": {"remat": "full", "unroll": 2}, "optim": {"accum_steps": 2}},
    {"data": {"prefetch": 4, "path": "/moved"}, "init_from": "x"},
  ],
)
def test_settings_that_may_differ(saved, state, changes):
  run = checkpoints.CheckpointMetadata(tiny.config(**changes), RUN.data)
  assert checkpoints.restore_newest(saved, run, like(state)).step == 7


def test_a_full_disk_keeps_earlier_checkpoints(saved, state, capsys):
  """Warns at the first failure, ends at the second; a success resets them."""
  writer = checkpoints.Checkpointer(saved, checkpoints.Retention(1), RUN)
  with full_disk():
    writer.save(8, state)
    writer.save(9, state)
    with pytest.raises(TrainingError) as error:
      writer.save(10, state)
  output = capsys.readouterr().err
  assert "the checkpoint of step 8 could not be written (" in output
  assert "the last good checkpoint is of step 7" in output
  assert "the last good checkpoint is of step 7" in str(error.value)
  assert "Free space" in str(error.value)
  assert checkpoints.restore_newest(saved, RUN, like(state)).step == 7
  again = checkpoints.Checkpointer(saved, checkpoints.Retention(1), RUN)
  with full_disk():
    again.save(11, state)
    again.close()  # waits for the write
  again.save(12, state)
  again.close()
  assert "step 11 could not be written" in capsys.readouterr().err
  assert checkpoints.restore_newest(saved, RUN, like(state)).step == 12


def test_threads_of_a_failed_attempt_do_not_disturb_the_next(saved, state):
  """Writers of a failed attempt go on writing into its directory."""
  writer = checkpoints.Checkpointer(saved, checkpoints.Retention(1), RUN)
  with full_disk(), pytest.raises(TrainingError):
    writer.save(8, state, wait=True)
  left = max((saved / "checkpoints").glob("8*"))
  ended = threading.Event()

  def write():
    for number in itertools.count():
      left.mkdir(exist_ok=True)
      with contextlib.suppress(FileNotFoundError):
        (left / str(number)).touch()
      if ended.is_set():
        return

  thread = threading.Thread(target=write)
  thread.start()
  try:
    writer.save(8, state, wait=True)
  finally:
    ended.set()
    thread.join()
  writer.close()
  assert checkpoints.restore_newest(saved, RUN, like(state)).step == 8
  checkpoints.Checkpointer(saved, checkpoints.Retention(1), RUN).save(
    9, state, wait=True
  )
  assert not left.exists()
