"""Tests of crops, flips and decoding against torchvision's rules and Pillow."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mae_jax.data import decode, prepare, preprocess
from mae_jax.data.image_headers import Reading
from tests.data.conftest import encode

RATIO = (3 / 4, 4 / 3)
BICUBIC = Image.Resampling.BICUBIC


def random_resized_crop(encoded, draws, channels, **how):
  record = {"image": tf.constant(encoded)}
  image, reason = preprocess.random_resized_crop(
    record, tf.constant(draws), reading=Reading(channels, True), **how
  )
  assert reason == b""
  return image.numpy()


def center_crop(encoded, channels, **how):
  record = {"image": tf.constant(encoded)}
  image, reason = preprocess.fit(record, reading=Reading(channels, True), **how)
  assert reason == b""
  return image.numpy()


def decoded(encoded, channels, box=None):
  record = {"image": tf.constant(encoded)}
  image, reason = decode.decode(record, Reading(channels, True), box=box)
  assert reason == b""
  return image.numpy()


def torchvision_box(height, width, draws, scale, ratio):
  """Computes RandomResizedCrop.get_params with random numbers from `draws`."""
  areas, aspects = draws[:10], draws[10:20]
  for u, v in zip(areas, aspects, strict=True):
    area = height * width * (scale[0] + u * (scale[1] - scale[0]))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = math.exp(low + v * (high - low))
    w = round(math.sqrt(area * aspect))
    h = round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      top = math.floor(draws[20] * (height - h + 1))
      left = math.floor(draws[21] * (width - w + 1))
      return top, left, h, w
  if width / height < min(ratio):
    w, h = width, round(width / min(ratio))
  elif width / height > max(ratio):
    w, h = round(height * max(ratio)), height
  else:
    w, h = width, height
  return (height - h) // 2, (width - w) // 2, h, w


def uniform(number, seed=0):
  shape = (number, preprocess.CROP_DRAWS)
  return np.random.default_rng(seed).random(shape, np.float32)


def boxes_of(height, width, draws, scale, ratio=RATIO):
  full = np.ones(len(draws), np.int32)
  boxes = preprocess.crop_box(full * height, full * width, draws, scale, ratio)
  return boxes.numpy()


@pytest.mark.parametrize(
  "shape",
  [(375, 500), (8, 8), (1, 1), (1, 90), (90, 1), (2, 3), (40, 400), (64, 21)],
)
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.08, 1.0), (1.0, 1.0)])
def test_crop_box_is_torchvisions_and_inside(shape, scale):
  draws = uniform(300)
  boxes = boxes_of(*shape, draws, scale)
  expected = [
    torchvision_box(*shape, row, scale, RATIO)
    for row in draws.astype(np.float64)
  ]
  np.testing.assert_array_equal(boxes, expected)
  assert (boxes[:, :2] >= 0).all()
  assert (boxes[:, 2:] >= 1).all()
  assert (boxes[:, :2] + boxes[:, 2:] <= shape).all()


@pytest.mark.parametrize("shape", [(375, 500), (40, 400), (1, 90), (2, 3)])
def test_a_clipped_box_is_the_first_one_clipped_to_the_image(shape):
  """Follows util/crop.py of the reference: one sample, no second try."""
  height, width = shape
  draws = uniform(300)
  full = np.ones(len(draws), np.int32)
  boxes = preprocess.crop_box(
    full * height, full * width, draws, (0.08, 1.0), RATIO, clipped=True
  )
  low, high = np.log(RATIO)
  for box, row in zip(boxes.numpy(), draws.astype(np.float64), strict=True):
    area = height * width * (0.08 + 0.92 * row[0])
    aspect = np.exp(low + (high - low) * row[preprocess.TRIES])
    w = min(max(round(np.sqrt(area * aspect)), 1), width)
    h = min(max(round(np.sqrt(area / aspect)), 1), height)
    top = int(row[-2] * (height - h + 1))
    left = int(row[-1] * (width - w + 1))
    np.testing.assert_array_equal(box, [top, left, h, w])


@pytest.mark.parametrize(
  "shape", [(256, 341), (375, 256), (256, 256), (512, 700), (1, 9)]
)
def test_a_fixed_box_is_resize_and_random_crop(shape):
  """Follows torchvision: shorter side to 256, then a random 224 x 224 crop."""
  draws = uniform(400)
  full = np.ones(len(draws), np.int32)
  boxes = preprocess.crop_box(
    full * shape[0],
    full * shape[1],
    draws,
    (0.2, 1.0),
    (1.0, 1.0),
    fixed=0.875,
  ).numpy()
  side = max(round(min(shape) * 224 / 256), 1)
  assert (boxes[:, 2:] == side).all()
  for axis in (0, 1):
    room = shape[axis] - side
    # RandomCrop samples from 0 to the margin, both included.
    wanted = np.floor(draws[:, axis - 2].astype(np.float64) * (room + 1))
    np.testing.assert_array_equal(boxes[:, axis], wanted)
    assert boxes[:, axis].min() >= 0
    assert boxes[:, axis].max() <= room


def test_crop_box_under_an_extreme_ratio_is_not_empty():
  boxes = boxes_of(1, 1, uniform(50), (0.2, 1.0), (0.01, 0.02))
  np.testing.assert_array_equal(boxes, np.tile([0, 0, 1, 1], (50, 1)))


def test_crop_box_of_one_image_equals_that_of_many():
  draws = uniform(20)
  many = boxes_of(375, 500, draws, (0.2, 1.0))
  one = [
    preprocess.crop_box(375, 500, row, (0.2, 1.0), RATIO).numpy()
    for row in draws
  ]
  np.testing.assert_array_equal(many, one)


def test_crop_box_distribution():
  """Compares means with torchvision's loop on other draws; checks ranges."""
  number, side = 20_000, 1000
  ours = boxes_of(side, side, uniform(number, 1), (0.2, 1.0))
  other = uniform(number, 2).astype(np.float64)
  theirs = np.array(
    [torchvision_box(side, side, row, (0.2, 1.0), RATIO) for row in other]
  )

  def area(boxes):
    return boxes[:, 2] * boxes[:, 3] / side**2

  def aspect(boxes):
    return np.log(boxes[:, 3] / boxes[:, 2])

  assert area(ours).min() > 0.199
  assert area(ours).max() <= 1
  assert np.abs(aspect(ours)).max() < math.log(4 / 3) + 0.01
  # Five standard errors of a difference of two means.
  for measure in (area, aspect, lambda b: b[:, 0], lambda b: b[:, 1]):
    a, b = measure(ours), measure(theirs)
    error = math.sqrt((a.var() + b.var()) / number)
    assert abs(a.mean() - b.mean()) < 5 * error
    assert a.std() == pytest.approx(b.std(), rel=0.03)


def test_small_crops_have_the_stated_area_and_aspect():
  """Boxes that nearly always fit have the distributions of area and aspect."""
  boxes = boxes_of(2000, 2000, uniform(20_000), (0.1, 0.3))
  area = boxes[:, 2] * boxes[:, 3] / 2000**2
  aspect = np.log(boxes[:, 3] / boxes[:, 2]) / math.log(4 / 3)
  for values, low, high in ((area, 0.1, 0.3), (aspect, -1, 1)):
    grid = np.linspace(low, high, 11)
    share = np.histogram(values, grid)[0] / len(values)
    np.testing.assert_allclose(share, 0.1, atol=0.012)


def pillow_resize(image, size, mode):
  """Resizes uint8 [h, w, 3] with Pillow's bicubic filter, channel by channel.

  Mode "L" rounds to bytes, and clips, between its two passes; "F" does neither.
  """
  channels = [
    Image.fromarray(channel).convert(mode).resize(size[::-1], BICUBIC)
    for channel in np.moveaxis(image, -1, 0)
  ]
  pixels = np.stack([np.asarray(channel) for channel in channels], -1)
  return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
  "shape", [(40, 61), (7, 9), (1, 1), (1, 300), (300, 1), (19, 26)]
)
def test_two_passes_equal_tensorflows_resize(shape, channels):
  """Pixels are equal except in ties, which a graph may break differently."""
  pixels = np.random.default_rng(0).integers(0, 256, (*shape, channels))
  image = tf.constant(pixels, tf.uint8)
  for size in ((19, 26), tf.constant([26, 19])):
    wanted = tf.image.resize(image, size, "bicubic", antialias=True)
    wanted = np.clip(wanted, 0, 255)
    found = preprocess._resize(image, size).numpy()
    assert np.abs(found - wanted).max() < 0.5 + 1e-4
    assert (found != np.rint(wanted)).mean() < 0.001


@pytest.mark.parametrize("form", ["png", "jpeg", "bmp"])
def test_random_resized_crop_is_pillows(photos, form):
  """Decodes, crops and resizes as Pillow does, except for the rounding."""
  size, scale = (96, 80), (0.2, 1.0)
  for photo, draws in zip(photos * 3, uniform(6), strict=True):
    encoded = encode(photo, format=form)
    found = random_resized_crop(
      encoded, draws, size=size, scale=scale, ratio=RATIO, channels=3
    )
    box = torchvision_box(427, 640, draws.astype(float), scale, RATIO)
    top, left, height, width = box
    image = np.asarray(Image.open(io.BytesIO(encoded)))
    crop = image[top : top + height, left : left + width]

    # Rounded once: equal except in ties, and in the color at a JPEG crop's
    # edge, which Pillow interpolates from pixels outside the crop.
    exact = np.abs(found.astype(int) - pillow_resize(crop, size, "F"))
    assert exact.max() <= (2 if form == "jpeg" else 1)
    assert exact.mean() < (0.01 if form == "jpeg" else 0.001)
    # Rounded and clipped twice, as in the reference.
    usual = np.abs(found.astype(int) - pillow_resize(crop, size, "L"))
    assert usual.max() <= 3
    assert usual.mean() < 0.15


def test_arrays_and_files_are_cropped_alike():
  rng = np.random.default_rng(0)
  # Moderate contrast, as Pillow's first pass would clip and ours does not.
  images = rng.integers(90, 160, (30, 20, 26, 1), np.uint8)
  draws = uniform(30)
  how = {"size": (9, 12), "scale": (0.2, 1.0), "ratio": RATIO}
  arrays = preprocess.random_resized_crop_arrays(images, draws, **how).numpy()
  files = [
    random_resized_crop(
      encode(image[..., 0], format="png"), row, channels=1, **how
    )
    for image, row in zip(images, draws, strict=True)
  ]
  assert np.abs(arrays.astype(int) - np.array(files)).max() <= 1


@pytest.mark.parametrize("subsampling", [0, 1, 2])  # 4:4:4, 4:2:2, 4:2:0
def test_decoding_a_crop_equals_cropping_the_decoded(photos, subsampling):
  encoded = encode(photos[0], format="jpeg", subsampling=subsampling)
  whole = decoded(encoded, 3)
  for box in ([0, 0, 427, 640], [13, 77, 200, 301], [426, 639, 1, 1]):
    top, left, height, width = box
    crop = decoded(encoded, 3, lambda _, box=box: tf.constant(box))
    expected = whole[top : top + height, left : left + width].astype(int)
    difference = np.abs(crop - expected)
    assert crop.shape == (height, width, 3)
    # Color is interpolated from outside the crop, except at its edge.
    assert difference[1:-1, 1:-1].max(initial=0) == 0
    if subsampling == 0:
      assert difference.max() == 0


def test_a_thin_image_is_not_resized_as_a_whole():
  """The result equals a resize of the whole image, 64 x 1,280,000 pixels."""
  pixels = np.random.default_rng(0).integers(0, 256, (3, 60_000), np.uint8)
  image = center_crop(
    encode(pixels, format="png"), size=(64, 64), keep=1.0, channels=1
  )
  middle = pixels[:, 30_000 - 21 : 30_000 + 21]
  expected = center_crop(
    encode(middle, format="png"), size=(64, 64), keep=1.0, channels=1
  )
  assert np.abs(image.astype(int) - expected).max() <= 1


def test_flip_mirrors_below_a_half():
  images = np.arange(2 * 3 * 4 * 1, dtype=np.uint8).reshape(2, 3, 4, 1)
  flipped = preprocess.random_flip(images, np.float32([0.499, 0.5])).numpy()
  np.testing.assert_array_equal(flipped[0], images[0, :, ::-1])
  np.testing.assert_array_equal(flipped[1], images[1])
  one = preprocess.random_flip(images[0], np.float32(0.2)).numpy()
  np.testing.assert_array_equal(one, images[0, :, ::-1])


def pillow_center_crop(image, size, keep):
  """Applies torchvision's Resize(round(size / keep)) and CenterCrop(size)."""
  width, height = image.size
  short = round(size / keep)
  if width <= height:
    shape = (short, int(short * height / width))
  else:
    shape = (int(short * width / height), short)
  image = image.resize(shape, BICUBIC)
  left = round((shape[0] - size) / 2)
  top = round((shape[1] - size) / 2)
  return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("keep", [0.875, 1.0, 0.6])
@pytest.mark.parametrize("shape", [(640, 427), (427, 640), (101, 101)])
def test_center_crop_is_pillows(photos, keep, shape):
  image = Image.fromarray(photos[0]).resize(shape)
  found = center_crop(
    encode(image, format="png"), size=(63, 63), keep=keep, channels=3
  )
  expected = pillow_center_crop(image, 63, keep)
  difference = np.abs(found.astype(int) - expected)
  assert difference.max() <= 1
  assert difference.mean() < 0.2


def test_center_crop_of_arrays_is_pillows_bit_for_bit():
  rng = np.random.default_rng(3)
  images = rng.integers(0, 256, (5, 20, 31, 3), np.uint8)
  found = preprocess.fit_arrays(
    tf.constant(images), size=(12, 12), keep=0.875
  ).numpy()
  expected = [
    pillow_center_crop(Image.fromarray(image), 12, 0.875) for image in images
  ]
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
  ("shape", "size", "keep", "cover"),
  [
    ((375, 500), (224, 224), 0.875, (256, 341)),
    ((500, 375), (224, 224), 0.875, (341, 256)),
    ((375, 500), (100, 200), 1.0, (150, 200)),
    ((500, 375), (200, 100), 1.0, (200, 150)),
    ((1, 1000), (8, 8), 1.0, (8, 8000)),
  ],
)
def test_covering_size(shape, size, keep, cover):
  assert prepare.covering_size(*shape, size, keep) == cover
  tensors = [tf.constant(side, tf.int64) for side in shape]
  found = preprocess.covering_size(*tensors, size, keep)
  assert tuple(int(side) for side in found) == cover


def test_center_crop_of_an_image_of_this_size_changes_nothing(photos):
  image = photos[0][:50, :70]
  same = center_crop(
    encode(image, format="png"), size=(50, 70), keep=1.0, channels=3
  )
  np.testing.assert_array_equal(same, image)
  same = preprocess.fit_arrays(
    tf.constant(image[None]), size=(50, 70), keep=1.0
  )
  np.testing.assert_array_equal(same[0], image)
