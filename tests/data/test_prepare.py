"""Tests of the preparation of one image, and of its twin in the pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mae_jax.data import image_files, prepare, preprocess
from mae_jax.data.image_headers import Reading
from tests.data.conftest import encode


def by_pillow(image, size, keep, how):
  """Resizes by hand as torchvision does, and crops the center."""
  picture, resample = Image.fromarray(image), prepare.RESAMPLE[how]
  width, height = picture.size
  rows, columns = (round(side / keep) for side in size)
  if rows / height >= columns / width:
    shape = (int(rows * width / height), rows)
  else:
    shape = (columns, int(columns * height / width))
  left = round((shape[0] - size[1]) / 2)
  top = round((shape[1] - size[0]) / 2)
  box = (left, top, left + size[1], top + size[0])
  return np.asarray(picture.resize(shape, resample).crop(box))


@pytest.mark.parametrize("how", prepare.RESAMPLE)
@pytest.mark.parametrize("keep", [0.875, 1.0])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
@pytest.mark.parametrize("shape", [(100, 300), (300, 100), (40, 40)])
def test_a_crop_is_pillows(photos, settings, how, keep, size, shape):
  image = np.ascontiguousarray(photos[0][: shape[0], : shape[1]])
  data = settings(image_size=size, eval_crop=keep, eval_resample=how)
  np.testing.assert_array_equal(
    prepare.fit(image, data), by_pillow(image, size, keep, how)
  )


@pytest.mark.parametrize("how", prepare.RESAMPLE)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_squash_resizes_all(photos, settings, how, channels):
  image = np.resize(photos[0][:100, :300], (100, 300, channels))
  data = settings(image_size=(64, 48), eval_fit="squash", eval_resample=how)
  expected = [
    Image.fromarray(image[..., k]).resize((48, 64), prepare.RESAMPLE[how])
    for k in range(channels)
  ]
  np.testing.assert_array_equal(
    prepare.fit(image, data), np.stack(expected, axis=-1)
  )


@pytest.mark.parametrize("how", prepare.RESAMPLE)
@pytest.mark.parametrize("fit", prepare.FITS)
@pytest.mark.parametrize("keep", [0.6, 1.0])
def test_the_pipeline_prepares_the_same(photos, settings, how, fit, keep):
  image = np.ascontiguousarray(photos[0][:100, :300])
  data = settings(
    image_size=(64, 48), eval_fit=fit, eval_crop=keep, eval_resample=how
  )
  wanted = prepare.fit(image, data).astype(int)
  record = {"image": tf.constant(encode(image, format="png"))}
  found, reason = preprocess.fit(
    record, reading=Reading(3, True), **preprocess.fit_settings(data)
  )
  assert reason.numpy() == b""
  apart = np.abs(found.numpy() - wanted)
  assert apart.max() <= 2
  assert apart.mean() < 0.2
  arrays = preprocess.fit_arrays(image[None], **preprocess.fit_settings(data))
  assert np.abs(arrays[0].numpy() - wanted).max() <= 2


@pytest.mark.parametrize("fit", prepare.FITS)
@pytest.mark.parametrize("background", ["white", "gray", "drop"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_written_code_prepares_the_same(
  photos, settings, tmp_path, monkeypatch, fit, background, channels
):
  """Runs the code as a reader of a model card would."""
  picture = Image.fromarray(photos[0][:100, :230])
  picture.putalpha(Image.linear_gradient("L").resize(picture.size))
  exif = Image.Exif()
  exif[0x112] = 6
  path = tmp_path / "image.jpg"  # Pillow looks at the content
  picture.save(path, format="png", exif=exif)
  data = settings(
    image_size=(64, 48),
    eval_crop=0.875,
    eval_fit=fit,
    background=background,
    channels=channels,
    mean=(0.485, 0.456, 0.406)[:channels],
    std=(0.229, 0.224, 0.225)[:channels],
  )
  image = image_files.read(path, Reading.of(data))
  wanted = (prepare.fit(image, data) / 255 - data.mean) / data.std
  monkeypatch.chdir(tmp_path)
  found: dict = {}
  code = prepare.as_code(data)
  assert code.count("\n") <= 18
  exec(code, found)
  np.testing.assert_allclose(found["pixels"], wanted, atol=1e-6)
  exec(prepare.as_code(data, normalized=False), found)
  np.testing.assert_array_equal(found["pixels"], prepare.fit(image, data))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_written_code_takes_the_high_byte(
  settings, tmp_path, monkeypatch, channels
):
  path = tmp_path / "image.jpg"
  x_ray = np.arange(96 * 64, dtype=np.uint16).reshape(96, 64) * 10
  Image.fromarray(x_ray).save(path, format="png")
  data = settings(
    image_size=(64, 48),
    channels=channels,
    mean=(0.5,) * channels,
    std=(0.25,) * channels,
  )
  wanted = prepare.fit(image_files.read(path, Reading.of(data)), data)
  assert len(np.unique(wanted)) > 150
  monkeypatch.chdir(tmp_path)
  found: dict = {}
  exec(prepare.as_code(data, normalized=False), found)
  np.testing.assert_array_equal(found["pixels"], wanted)


@pytest.mark.parametrize("fit", prepare.FITS)
def test_values_of_a_range_are_not_rounded(
  settings, tmp_path, monkeypatch, fit
):
  x_ray = np.arange(96 * 64, dtype=np.uint16).reshape(96, 64)[::-1] * 7
  path = tmp_path / "image.jpg"
  Image.fromarray(x_ray).save(path, format="png")
  data = settings(
    source="folder",
    image_size=(32, 24),
    eval_crop=0.8,
    eval_fit=fit,
    value_range=(500.0, 40000.0),
  )
  reading = Reading.of(data)
  wanted = prepare.fit(image_files.read(path, reading), data)
  assert wanted.dtype == np.float32
  assert len(np.unique(wanted)) > 500
  record = {"image": tf.constant(path.read_bytes())}
  found, reason = preprocess.fit(
    record, reading=reading, **preprocess.fit_settings(data)
  )
  assert reason.numpy() == b""
  np.testing.assert_allclose(found, wanted, atol=1e-2)
  monkeypatch.chdir(tmp_path)
  names: dict = {}
  exec(prepare.as_code(data), names)
  normalized = (wanted / 255 - data.mean) / data.std
  np.testing.assert_allclose(names["pixels"], normalized, atol=1e-5)


def test_a_very_long_image_is_resized_in_part(settings):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (3, 20_000, 3), np.uint8)
  data = settings(image_size=(96, 96), eval_crop=1.0)
  found = prepare.fit(image, data)
  # The network sees the middle three columns.
  middle = image[:, 9998:10_002].astype(float)
  assert found.shape == (96, 96, 3)
  assert np.abs(found.mean((0, 1)) - middle.mean((0, 1))).max() < 40
