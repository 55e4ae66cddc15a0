"""Tests of what users pass: images as they have them, and other types."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

import mae_jax

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def digits():
  return mae_jax.from_pretrained("digits")


@pytest.fixture(autouse=True)
def nothing_is_printed(capfd, caplog):
  yield
  assert capfd.readouterr() == ("", "")
  assert not caplog.records


@pytest.mark.parametrize("turn", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["tiff", "png", "jpeg"])
def test_pillow_images_are_rotated_once(digits, tmp_path, kind, turn):
  pixels = np.zeros((8, 8), np.uint8)
  pixels[:4, :2] = 255
  exif = Image.Exif()
  exif[0x112] = turn
  path = tmp_path / f"a.{kind}"
  Image.fromarray(pixels).save(path, exif=exif)
  wanted = digits.features(path).values
  with Image.open(path) as image:  # not decoded yet
    np.testing.assert_array_equal(digits.features(image).values, wanted)
    np.testing.assert_array_equal(digits.features(image).values, wanted)


def test_pillow_images_that_cannot_be_read(digits, tmp_path):
  path = tmp_path / "a.png"
  Image.fromarray(IMAGES[0, ..., 0]).save(path)
  path.write_bytes(path.read_bytes()[:-30])
  with (
    Image.open(path) as image,
    pytest.raises(
      mae_jax.ConfigError, match=r"images\[1\] is a Pillow image that cannot"
    ),
  ):
    digits.features([IMAGES[0], image])
  with pytest.raises(mae_jax.ConfigError, match="without pixels"):
    digits.features(Image.new("L", (0, 5)))


@pytest.mark.parametrize("mode", ["La", "RGBa", "CMYK", "LAB", "HSV", "1"])
def test_modes_of_pillow(digits, mode):
  image = Image.new(mode, (8, 8))
  assert np.isfinite(digits.features(image).values).all()


def test_a_column_of_paths(digits, tmp_path):
  paths = []
  for number, image in enumerate(IMAGES):
    paths.append(str(tmp_path / f"{number} é.png"))
    Image.fromarray(image[..., 0]).save(paths[-1])
  wanted = digits.features(IMAGES).values
  for column in (np.array(paths), np.array(paths, object)):
    np.testing.assert_array_equal(digits.features(column).values, wanted)


def test_other_files_are_a_note(tmp_path):
  model = mae_jax.from_pretrained("digits")
  Image.fromarray(IMAGES[0, ..., 0]).save(tmp_path / "a.png")
  (tmp_path / "a.txt").write_text("text")
  for _ in range(2):
    model.features(tmp_path)
  assert model.notes[1:] == [
    f"{tmp_path}: files skipped because they are not images: 1 (1 .txt)"
  ]


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda m: m.features(b"abc"), r"bytes: use PIL\.Image\.open"),
    (lambda m: m.features(io.BytesIO(b"")), r"BytesIO: use PIL\.Image\.open"),
    (lambda m: m.features(x for x in IMAGES), r"use list\(images\)"),
    (lambda m: m.features(""), "images is empty"),
    (lambda m: m.features("https://host/a.png"), "download it"),
    (lambda m: m.features("file:///tmp/a.png"), "use /tmp/a.png"),
    (lambda m: m.features(IMAGES[..., 0]), r"images\[\.\.\., None\]"),
    (lambda m: m.features(IMAGES[:1, ..., 0]), r"\(1, 2, 0\)"),
    (lambda m: m.features(np.zeros((8, 8, 4), np.uint8)), "alpha"),
    (
      lambda m: m.features(torch.zeros(1, 8, 8, 1, requires_grad=True)),
      "detach",
    ),
    (lambda m: m.features(IMAGES, batch_size=2.5), "batch_size=2.5 is a float"),
    (lambda m: m.features(IMAGES, batch_size="8"), "batch_size='8' is a str"),
    (lambda m: m.features(IMAGES, layers=4), r"layers=4 is a int: .* as \[4\]"),
    (lambda m: m.features(IMAGES, layers=[1.0]), "layers=1.0 is a float"),
    (lambda m: m.features(IMAGES, pool=None), "pool=None is not known"),
    (lambda m: m.features(IMAGES, pool=["mean"]), "is not known"),
    (lambda m: m.features(IMAGES, image_size=(8,)), "height and width"),
    (lambda m: m.reconstruct(IMAGES, "0.5"), "mask_ratio='0.5' is a str"),
    (lambda m: m.reconstruct(IMAGES, seed=None), "seed=None is a NoneType"),
    (lambda m: m.reconstruct(IMAGES, seed=2**32), "seed=.* must be at most"),
    (lambda m: m.reconstruct(IMAGES, strategy=None), "strategy=None"),
    (lambda m: m.attention(IMAGES, layer="last"), "layer='last' is a str"),
    (lambda m: m.attention(IMAGES, query=3), "a row and a column"),
    (lambda m: m.attention(IMAGES, query=(1.5, 0)), "query=1.5 is a float"),
    (lambda m: m.save_pretrained(None), "path=None"),
    (lambda m: mae_jax.from_pretrained(None), "source=None"),
    (lambda m: mae_jax.create_model(None), "name=None"),
    (lambda m: mae_jax.create_model("vit_ti8", mean=0.5), "mean=0.5"),
    (lambda m: mae_jax.create_model("vit_ti8", num_classes=-1), "at least 0"),
    (lambda m: mae_jax.create_model("vit_ti8", seed=None), "seed=None"),
    (lambda m: mae_jax.list_models(None), "pattern=None"),
    (lambda m: mae_jax.recipe(None), "name=None"),
  ],
)
def test_arguments_of_other_types(digits, call, message):
  with pytest.raises(mae_jax.ConfigError, match=message):
    call(digits)


def test_integers_of_numpy_and_sizes_of_any_kind(digits):
  wanted = digits.features(IMAGES, image_size=(16, 16)).values
  for size in (16, np.int64(16), [16, 16], np.array([16, 16])):
    found = digits.features(IMAGES, image_size=size, batch_size=np.int32(3))
    np.testing.assert_array_equal(found.values, wanted)
  model = mae_jax.create_model(
    "vit_tiny_patch16_32", depth=np.int64(1), decoder=False
  )
  assert model.image_size == (32, 32)


def test_changes_of_other_types():
  config = mae_jax.recipe("digits")
  changed = config.replace(
    {"config.data.batch_size": np.int64(64), "optim.blr": np.float64(1e-3)}
  )
  assert (changed.data.batch_size, changed.optim.blr) == (64, 1e-3)
  for changes, message in (
    ({"data.batch_size": "many"}, "batch_size='many' is a str"),
    ("data.batch_size=3", "give a dict"),
    ({1: 2}, "is no string"),
  ):
    with pytest.raises(mae_jax.ConfigError, match=message):
      config.replace(changes)
