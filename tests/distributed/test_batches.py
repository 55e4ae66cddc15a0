"""Tests that the rows of several processes form the batches of one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data.conftest import photo_dir, photos  # noqa: F401  (fixtures)
from tests.helpers import process_groups, read_batches
from tests.helpers.tfds_data import TEST, TRAIN, prepare, shapes

BATCH = 12
COMMON = {
  "batch_size": BATCH,
  "image_size": [8, 8],
  "crop_scale": [0.6, 1.0],
  "flip": True,
  "eval_crop": 1.0,
  "mean": [0.5],
  "std": [0.5],
  "eval_split": "test",
}
HELD_OUT = {"digits": 360, "folder": 5, "files": TEST, "file": TEST}


@pytest.fixture(scope="session")
def settings(tmp_path_factory, photo_dir):  # noqa: F811
  """Settings of arrays, 13 + 5 images, and records in three files or one."""
  directory = tmp_path_factory.mktemp("tfds")
  features = {
    "image": tfds.features.Image(shape=(None, None, 3)),
    "label": tfds.features.ClassLabel(num_classes=100),
    "file_name": tfds.features.Text(),
  }
  splits = {"train": shapes(TRAIN), "test": shapes(TEST)}
  prepare(directory, "three", features, splits, num_shards=3)
  prepare(directory, "one", features, splits, num_shards=1)
  color = COMMON | {"channels": 3}
  records = {
    "source": "tfds",
    "data_dir": str(directory),
    "record_shards": BATCH,
  }
  return {
    "digits": COMMON | {"source": "digits", "channels": 1},
    "folder": color
    | {"source": "folder", "path": str(photo_dir), "eval_split": "val"},
    "files": color | records | {"name": "three"},
    "file": color | records | {"name": "one", "shuffle_buffer": 24},
  }


@pytest.mark.slow
def test_batches_are_bit_equal_to_those_of_one_process(
  fork_server, settings, tmp_path
):
  """Includes fewer files than processes, and an incomplete last batch."""
  count = 3
  where, out = f"127.0.0.1:{process_groups.free_port()}", tmp_path / "found.npz"
  processes = [
    fork_server.start(
      [where, str(count), str(number), json.dumps(settings), str(out)],
      "tests.helpers.read_batches",
    )
    for number in range(count)
  ]
  expected = {}
  for name, section in settings.items():
    data = read_batches.data(section)
    for kind, stream in read_batches.streams(data, np.arange(BATCH)).items():
      for step, batch in enumerate(stream):
        for key, value in batch.items():
          expected[f"{name} {kind} {step} {key}"] = np.asarray(value)
  assert [each.wait(300) for each in processes] == [0] * count
  with np.load(out) as file:
    found = dict(file)
  assert found.keys() == expected.keys()
  for key, value in expected.items():
    np.testing.assert_array_equal(found[key], value, err_msg=key)
  # Evaluation reads every example exactly once.
  for name, total in HELD_OUT.items():
    masks = [
      v
      for k, v in found.items()
      if k.startswith(f"{name} eval") and k.endswith("mask")
    ]
    assert sum(mask.sum() for mask in masks) == total
  labels = [
    found[f"files eval {step} label"][found[f"files eval {step} mask"] > 0]
    for step in range(-(-TEST // BATCH))
  ]
  assert sorted(np.concatenate(labels)) == list(range(TEST))
