"""Tests of batches of three sources: order, resume, processes, evaluation."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from mae_jax.data import bad_images, pipeline, sources
from mae_jax.utils.errors import ConfigError
from tests.data.conftest import TEST, TRAIN, take
from tests.helpers import tiny
from tests.helpers.params import slow

SOURCES = ("digits", "folder", "tfds")


def train(data, number, *, seed=0, rows=None, start_step=0):
  source = sources.open_source(data, "train")
  rows = np.arange(data.batch_size) if rows is None else rows
  batches = pipeline.train_batches(
    source, data, seed=seed, rows=rows, start_step=start_step
  )
  return take(batches, number)


def evaluate(data, *, split="eval", batch_size=8, rows=None, limit=0):
  source = sources.open_source(data, split)
  rows = np.arange(batch_size) if rows is None else rows
  return list(
    pipeline.eval_batches(
      source, data, batch_size=batch_size, rows=rows, limit=limit
    )
  )


def joined(batches, key="image"):
  return np.concatenate([batch[key] for batch in batches])


def assert_same(left, right):
  assert len(left) == len(right)
  for one, other in zip(left, right, strict=True):
    assert one.keys() == other.keys()
    for key in one:
      np.testing.assert_array_equal(one[key], other[key], strict=True)


@pytest.fixture
def digit_numbers(settings):
  """Finds the example numbers of batches of digits without augmentation."""
  source = sources.open_source(settings(), "train")
  images = source.load(np.arange(source.num_examples))["image"].numpy()
  number = {image.tobytes(): k for k, image in enumerate(images)}
  assert len(number) == len(images)
  return lambda batches: [number[image.tobytes()] for image in joined(batches)]


def plain(settings, **changes):
  values = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": False}
  return settings(**(values | changes))


def test_an_epoch_is_a_permutation(settings, digit_numbers):
  data = plain(settings, batch_size=100)
  total = 1437
  order = digit_numbers(train(data, 44))
  epochs = [order[k * total : (k + 1) * total] for k in range(3)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(total))
    assert abs(np.corrcoef(epoch, np.arange(total))[0, 1]) < 0.15
  for one, other in ((0, 1), (1, 2), (0, 2)):
    assert abs(np.corrcoef(epochs[one], epochs[other])[0, 1]) < 0.15
  other_seed = digit_numbers(train(data, 15, seed=1))[:total]
  assert abs(np.corrcoef(other_seed, epochs[0])[0, 1]) < 0.15


def test_a_batch_may_span_many_epochs(any_settings):
  data = any_settings("folder", batch_size=64)
  labels = joined(train(data, 13), "label")
  epochs = labels.reshape(64, 13)  # 13 images
  assert (epochs.sum(1) == 6).all()
  assert len({tuple(epoch) for epoch in epochs}) > 32


def test_labels_stay_with_their_images(settings):
  data = plain(settings)
  digits = datasets.load_digits()
  label = {
    tuple(np.rint(image * (255 / 16)).astype(int)): target
    for image, target in zip(digits.data, digits.target, strict=True)
  }
  for batch in train(data, 3):
    assert batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32
    for image, target in zip(batch["image"], batch["label"], strict=True):
      assert label[tuple(image.reshape(-1).astype(int))] == target


@pytest.mark.parametrize("source", ["digits", slow("folder"), slow("tfds")])
def test_a_resumed_stream_is_the_same_bit_for_bit(any_settings, source):
  """Resumes across epochs too: 13 photos, and 13 records per shard."""
  data = any_settings(source)
  whole = train(data, 15)
  for start in (1, 6, 13):
    assert_same(train(data, 2, start_step=start), whole[start : start + 2])


def test_a_resumed_stream_of_digits_across_an_epoch(settings):
  data = settings(batch_size=1000)
  whole = train(data, 4)
  assert_same(train(data, 2, start_step=2), whole[2:])


@pytest.mark.parametrize("processes", [2, slow(4)])
@pytest.mark.parametrize("source", ["digits", "folder", slow("tfds")])
def test_processes_share_a_batch(any_settings, source, processes):
  data = any_settings(source)
  whole = train(data, 4, start_step=2)
  parts = [
    train(data, 4, start_step=2, rows=rows)
    for rows in np.split(np.arange(8), processes)
  ]
  assert_same(
    [
      {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}
      for batches in zip(*parts, strict=True)
    ],
    whole,
  )


@pytest.mark.parametrize("number", [5, slow(1), slow(12)])
def test_the_group_size_does_not_change_batches(
  any_settings, photo_dir, tmp_path, number
):
  """Compares rows in groups of 1, 5 and 6 with groups of 8."""
  shutil.copytree(photo_dir, tmp_path / "photos")
  (tmp_path / "photos" / "train" / "cat" / "02.jpg").write_bytes(b"no image")
  data = any_settings(
    "folder", path=str(tmp_path / "photos"), batch_size=24, max_unreadable=1.0
  )
  whole = train(data, 3)
  assert 0 < joined(whole, "readable").mean() < 1
  some = [{k: v[:number] for k, v in batch.items()} for batch in whole]
  assert_same(train(data, 3, rows=np.arange(number)), some)


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_randaugment_is_a_function_of_step_and_row(any_settings, source):
  """Changes some images; the same after a resume and on two processes."""
  data = any_settings(source, randaugment=9.0)
  whole = train(data, 4)
  before = train(any_settings(source), 4)
  changed = joined(whole) != joined(before)
  share = changed.reshape(len(changed), -1).any(axis=1).mean()
  # Three in four images get an operation; some operations change nothing.
  assert 0.4 < share < 0.95
  np.testing.assert_array_equal(joined(whole, "label"), joined(before, "label"))
  assert_same(train(data, 2, start_step=2), whole[2:])
  half = [{k: v[:4] for k, v in batch.items()} for batch in whole]
  assert_same(train(data, 4, rows=np.arange(4)), half)


@pytest.mark.parametrize("source", ["digits", "folder"])
def test_rows_need_not_be_neighbors(any_settings, source):
  data = any_settings(source)
  whole, rows = train(data, 2), np.array([0, 3, 7])
  expected = [{k: v[rows] for k, v in batch.items()} for batch in whole]
  assert_same(train(data, 2, rows=rows), expected)


@pytest.mark.parametrize("source", ["digits", slow("folder"), slow("tfds")])
def test_seeds_and_steps_differ(any_settings, source):
  data = any_settings(source)
  one, two = train(data, 2)
  assert (one["image"] != two["image"]).any()
  assert (train(data, 1, seed=1)[0]["image"] != one["image"]).any()
  assert_same(train(data, 1), [one])


def test_half_of_the_images_are_mirrored(settings):
  data = plain(settings, batch_size=1437)
  kept = joined(train(data, 4))
  mirrored = joined(train(plain(settings, batch_size=1437, flip=True), 4))
  flipped = (kept[:, :, ::-1] == mirrored).all((1, 2, 3))
  same = (kept == mirrored).all((1, 2, 3))
  assert (flipped | same).all()
  # 5748 fair coin flips: 0.5 within five standard errors.
  assert abs(flipped.mean() - 0.5) < 0.033 + same[flipped].mean()


def shard_labels(data, steps):
  """Returns the labels of each shard over a number of steps, in order."""
  labels = np.stack([batch["label"] for batch in train(data, steps)])
  return labels.reshape(steps, data.record_shards, -1).swapaxes(0, 1)


def test_a_shard_reads_each_record_once_per_epoch(any_settings):
  data = any_settings("tfds", batch_size=4, record_shards=4)
  shards = shard_labels(data, 41).reshape(4, -1)
  sizes = [13, 13, 13, 14]  # 53 records
  firsts = []
  for shard, size in zip(shards, sizes, strict=True):
    epochs = [tuple(shard[k * size : (k + 1) * size]) for k in range(2)]
    assert len(set(epochs[0])) == size
    assert set(epochs[0]) == set(epochs[1])
    assert epochs[0] != epochs[1]
    firsts += epochs[0]
  assert sorted(firsts) == list(range(TRAIN))


def test_one_shard_of_several_files(any_settings):
  data = any_settings("tfds", batch_size=5, record_shards=1, shuffle_buffer=4)
  labels = shard_labels(data, 22).reshape(-1)
  for epoch in (labels[:TRAIN], labels[TRAIN : 2 * TRAIN]):
    assert sorted(epoch) == list(range(TRAIN))


@pytest.mark.slow
def test_the_number_of_shards_divides_the_batch(any_settings):
  """A batch of 12 has at most 12 shards, although 64 are configured."""
  data = any_settings("tfds", batch_size=12, record_shards=64)
  whole = train(data, 3)
  third = train(data, 3, rows=np.arange(4, 8))
  assert_same(third, [{k: v[4:8] for k, v in b.items()} for b in whole])


def test_rows_that_split_a_shard_are_refused(any_settings):
  data = any_settings("tfds", record_shards=2)
  with pytest.raises(ConfigError, match=r"2 shards.*number of devices"):
    train(data, 1, rows=np.arange(2))


@pytest.mark.parametrize("batch_size", [7, 8, 100])
@pytest.mark.parametrize("source", SOURCES)
def test_evaluation_gives_every_example_once(any_settings, source, batch_size):
  data = any_settings(source, batch_size=batch_size)
  batches = evaluate(data, batch_size=batch_size)
  total = {"digits": 360, "folder": 5, "tfds": TEST}[source]
  assert len(batches) == -(-total // batch_size)
  mask = joined(batches, "mask")
  assert mask.dtype == np.float32
  assert mask.sum() == total
  assert set(mask) <= {0, 1}
  images, labels = joined(batches), joined(batches, "label")
  assert (images[mask == 0] == 0).all()
  assert (labels[mask == 0] == 0).all()
  real = {image.tobytes() for image in images[mask == 1]}
  # No two digits are equal, and the photos differ in size.
  assert len(real) == total
  if source == "tfds":
    assert sorted(labels[mask == 1]) == list(range(TEST))
    np.testing.assert_array_equal(images[..., 0, 0, 0], 2 * labels)


@pytest.mark.parametrize("source", ["digits", slow("folder"), slow("tfds")])
def test_processes_share_an_evaluation(any_settings, source):
  """Splits rows unevenly too, and splits record shards."""
  data = any_settings(source, record_shards=2)
  whole = evaluate(data)
  for parts in (np.split(np.arange(8), 4), np.split(np.arange(8), [1, 3])):
    found = [evaluate(data, rows=rows) for rows in parts]
    assert len({len(batches) for batches in found}) == 1
    assert_same(
      [
        {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}
        for batches in zip(*found, strict=True)
      ],
      whole,
    )


@pytest.mark.parametrize("split", ["train", "eval"])
@pytest.mark.parametrize("source", ["folder", "tfds"])
def test_fewer_examples_than_rows(any_settings, source, split):
  data = any_settings(source)
  batches = evaluate(data, split=split, batch_size=64)
  total = {"folder": (13, 5), "tfds": (TRAIN, TEST)}[source][split == "eval"]
  assert len(batches) == 1
  assert batches[0]["mask"].sum() == total


@pytest.mark.parametrize("source", SOURCES)
def test_a_limited_evaluation_is_a_fixed_even_sample(any_settings, source):
  data = any_settings(source)
  sample = evaluate(data, split="train", limit=10)
  mask = joined(sample, "mask") == 1
  assert mask.sum() == 10
  assert_same(evaluate(data, split="train", limit=10), sample)
  labels = joined(sample, "label")[mask]
  if source == "digits":
    assert len(set(labels)) > 4
  elif source == "folder":
    assert set(labels) == {0, 1}
  else:
    assert len(set(labels)) == 10
    assert max(labels) > TRAIN // 2


def test_training_images_can_be_streamed_unaugmented(settings, digit_numbers):
  batches = evaluate(settings(), split="train", batch_size=479)
  assert digit_numbers(batches) == list(range(1437))


def test_image_size_is_free(settings):
  data = settings(image_size=(12, 16), eval_crop=0.8)
  assert train(data, 1)[0]["image"].shape == (32, 12, 16, 1)
  assert evaluate(data)[0]["image"].shape == (8, 12, 16, 1)


def test_gray_from_color(any_settings):
  data = any_settings("folder", channels=1)
  assert train(data, 1)[0]["image"].shape == (8, 12, 10, 1)
  assert evaluate(data)[0]["image"].shape == (8, 12, 10, 1)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"crop_scale": (0.0, 1.0)}, r"crop_scale=\(0.0, 1.0\) must be two"),
    ({"crop_scale": (0.5, 2.0)}, r"crop_scale=.*larger at most 1"),
    ({"crop_ratio": (2.0, 1.0)}, r"crop_ratio=.*smaller one first"),
  ],
)
def test_settings_that_cannot_work_are_refused(settings, changes, words):
  with pytest.raises(ConfigError, match=words):
    train(settings(**changes), 1)


@pytest.mark.parametrize("rows", [[], [3, 2], [1, 1], [-1, 0], [31, 32]])
def test_rows_that_are_not_part_of_a_batch(settings, rows):
  with pytest.raises(
    ValueError, match=r"must be one or more increasing numbers in 0\.\.31"
  ):
    train(settings(), 1, rows=np.array(rows))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["digits", "folder"])
def test_stacked_streams_equal_single_streams(kind, tmp_path):
  settings = tiny.config().data
  if kind == "folder":
    for number in range(7):
      Image.new("L", (9, 8), 30 * number).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    settings = dataclasses.replace(
      settings, source="folder", path=str(tmp_path)
    )
  source = sources.open_source(settings, "train")
  rows = np.arange(3, 9)
  pairs = [(source, 0), (source.subset(5), 1), (source, 2)]
  unreadable = [bad_images.BadImages(max_warnings=0) for _ in range(2)]
  together = pipeline.stacked_train_batches(
    pairs, settings, rows=rows, start_step=2, unreadable=unreadable[0]
  )
  alone = [
    pipeline.train_batches(
      each,
      settings,
      seed=seed,
      rows=rows,
      start_step=2,
      unreadable=unreadable[1],
    )
    for each, seed in pairs
  ]
  for _ in range(3):
    batch = next(together)
    for number, stream in enumerate(alone):
      for name, values in next(stream).items():
        np.testing.assert_array_equal(batch[name][:, number], values)
  assert bool(unreadable[0].names) == (kind == "folder")
  assert set(unreadable[0].names) == set(unreadable[1].names)
