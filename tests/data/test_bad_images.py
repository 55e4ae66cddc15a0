"""Tests that unreadable images keep their rows, and change no other row."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mae_jax.data import pipeline, sources
from mae_jax.data.bad_images import BadImages
from mae_jax.utils.errors import ConfigError, TrainingError
from tests.data.conftest import encode, take
from tests.helpers.tfds_data import prepare

BAD = (2, 5, 7, 11)  # of 14 images
MEAN = (0.2, 0.4, 0.6)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, photos):
  """Two folders of the same 14 images; in the second four are unreadable."""
  roots = []
  for name in ("whole", "spoilt"):
    root = tmp_path_factory.mktemp(name)
    for k in range(14):
      photo = photos[k % 2][10 * k : 10 * k + 60, :80]
      form = ("jpeg", "png", "webp")[k % 3]
      path = root / f"{'ab'[k % 2]}" / f"{k:02d}.{form}"
      path.parent.mkdir(exist_ok=True)
      data = encode(photo, format=form)
      if name == "spoilt" and k in BAD:
        data = {2: b"", 5: b"<html>", 7: data[: len(data) // 2], 11: None}[k]
      if data is None:
        path.symlink_to("nowhere")
      else:
        path.write_bytes(data)
    roots.append(root)
  return roots


@pytest.fixture
def opened(settings):
  def make(root, **changes):
    values = {"channels": 3, "mean": MEAN, "std": (0.5,) * 3, "batch_size": 7}
    data = settings(source="folder", path=str(root), **(values | changes))
    return sources.open_source(data, "train"), data

  return make


def train(source, data, number, **how):
  how = {"seed": 0, "rows": np.arange(data.batch_size)} | how
  return take(pipeline.train_batches(source, data, **how), number)


def test_training_replaces_unreadable_images(folders, opened, capsys):
  whole = train(*opened(folders[0]), 4)
  source, data = opened(folders[1])
  found = BadImages()
  spoilt = train(source, data, 4, unreadable=found)  # two epochs
  assert sum((~batch["readable"]).sum() for batch in spoilt) == 2 * len(BAD)
  for one, other in zip(whole, spoilt, strict=True):
    assert one["readable"].all()
    assert one["readable"].dtype == other["readable"].dtype == bool
    assert one.keys() == other.keys() == {"image", "label", "readable"}
    np.testing.assert_array_equal(one["label"], other["label"])
    kept = other["readable"]
    np.testing.assert_array_equal(one["image"][kept], other["image"][kept])
    assert (other["image"][~kept] == [51, 102, 153]).all()
  names = {name.rsplit("/", 1)[1] for name in found.names}
  assert names == {"02.webp", "05.webp", "07.png", "11.webp"}
  warnings = capsys.readouterr().err.splitlines()
  assert len([line for line in warnings if "cannot be read" in line]) == 4
  assert any("11.webp cannot be read: No such file" in x for x in warnings)


@pytest.mark.slow
def test_resuming_and_sharing_with_unreadable_images(folders, opened):
  source, data = opened(folders[1])
  whole = train(source, data, 4)
  resumed = train(source, data, 2, start_step=2)
  parts = [
    train(source, data, 2, start_step=2, rows=rows)
    for rows in (np.arange(3), np.arange(3, 7))
  ]
  for k in range(2):
    for key, value in whole[2 + k].items():
      np.testing.assert_array_equal(resumed[k][key], value)
      joined = np.concatenate([part[k][key] for part in parts])
      np.testing.assert_array_equal(joined, value)


def test_evaluation_ignores_unreadable_images(folders, opened):
  batches = [
    next(
      pipeline.eval_batches(*opened(root), batch_size=16, rows=np.arange(16))
    )
    for root in folders
  ]
  bad = np.isin(np.arange(16), [1, 9, 10, 12])  # sorted by path
  mask, readable = batches[1]["mask"], batches[1]["readable"]
  np.testing.assert_array_equal(readable, ~bad)
  np.testing.assert_array_equal(mask, batches[0]["mask"] * ~bad)
  for key in ("image", "label"):
    assert (batches[1][key][bad] == 0).all()
    np.testing.assert_array_equal(batches[0][key][~bad], batches[1][key][~bad])


def test_no_readable_image_is_an_error_before_training(tmp_path, opened):
  for k in range(30):
    (tmp_path / f"{k:02d}.jpg").write_bytes(b"<html>")
  source, data = opened(tmp_path)
  with pytest.raises(ConfigError, match=r"none of 8 .* over 30, can") as e:
    pipeline.check_readable(source, data)
  assert f"{tmp_path}/00.jpg: it is not JPEG" in str(e.value)
  (tmp_path / "00.jpg").write_bytes(
    encode(np.zeros((4, 4), np.uint8), format="png")
  )
  pipeline.check_readable(*opened(tmp_path))


@pytest.fixture
def records(tmp_path, settings):
  """A data set of 12 records in two files; record 3 is not an image."""
  features = {"image": tfds.features.Image(shape=(None, None, 3))}
  path = tmp_path / "3.png"
  path.write_bytes(b"\x89PNG, or not")
  examples = [{"image": np.full((5, 5, 3), k, np.uint8)} for k in range(12)]
  examples[3] = {"image": str(path)}
  prepare(tmp_path, "dots", features, {"train": examples}, num_shards=2)
  data = settings(
    source="tfds", name="dots", data_dir=str(tmp_path), channels=3,
    batch_size=4, record_shards=2, mean=MEAN,
  )  # fmt: skip
  return sources.open_source(data, "train"), data


def test_records_are_named_by_file_and_number(records):
  source, data = records
  found = BadImages()
  batches = train(source, data, 6, unreadable=found)
  assert sum((~batch["readable"]).sum() for batch in batches) == 2
  (name,) = found.names
  file, number = name.rsplit(":", 1)
  assert file in source.files
  assert 0 <= int(number) < 6


@pytest.mark.parametrize("fault", ["cut", "flipped", "short"])
def test_a_damaged_record_file_is_named(records, fault):
  source, data = records
  path = source.files[1]
  with open(path, "rb") as file:
    content = bytearray(file.read())
  if fault == "cut":
    content = content[:-20]
  elif fault == "short":  # removes exactly the last record
    ends = [0]
    while ends[-1] < len(content):
      size = int.from_bytes(content[ends[-1] :][:8], "little")
      ends.append(ends[-1] + size + 16)
    content = content[: ends[-2]]
  else:
    content[len(content) // 2] ^= 1
  with open(path, "wb") as file:
    file.write(content)
  with pytest.raises(TrainingError, match=r"is damaged: .*good copy") as e:
    train(source, data, 12)
  assert path in str(e.value)


@pytest.mark.slow
def test_streams_may_be_dropped_while_pillow_works(folders, opened):
  source, data = opened(folders[0], image_size=(64, 64))

  def drop():
    for seed in range(4):
      next(pipeline.train_batches(source, data, seed=seed, rows=np.arange(7)))

  thread = threading.Thread(target=drop, daemon=True)
  thread.start()
  thread.join(60)
  assert not thread.is_alive()


def test_names_are_reported_once_and_up_to_a_limit(capsys):
  found = BadImages(max_warnings=2)
  for name in "aabcd":
    found.report(name, "it is empty")
  assert found.names == ("a", "b", "c", "d")
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 3
  assert lines[0] == "warning: a cannot be read: it is empty"
  assert "more than 2 images" in lines[2]
  assert found.listing(1) == "  a: it is empty\n  and 3 more"
