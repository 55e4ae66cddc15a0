"""Tests of pixels of more than 8 bits, from files to a training step."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest
from PIL import Image

import mae_jax
from mae_jax.config import EvalConfig
from mae_jax.data import image_headers, image_io, pipeline, sources
from mae_jax.tools import attention_maps, features, reconstruct
from mae_jax.tools.export import command as export
from mae_jax.tools.export import stablehlo
from mae_jax.utils.errors import ConfigError
from tests.helpers import runs, tiny

SIZE = 64


@pytest.fixture(autouse=True)
def no_notes(monkeypatch):
  monkeypatch.setattr(image_headers, "notes", {})


def config(folder, value_range, **changes):
  data = {
    "source": "folder",
    "path": str(folder),
    "image_size": (SIZE, SIZE),
    "batch_size": 8,
    "channels": 1,
    "mean": (0.5,),
    "std": (0.3,),
    "crop_scale": (1.0, 1.0),
    "crop_ratio": (1.0, 1.0),
    "flip": False,
    "eval_crop": 1.0,
    "eval_split": "",
    "value_range": value_range,
  }
  return tiny.config(
    data=data | changes,
    model={"patch_size": (16, 16)},
    optim={"warmup": "0 steps"},
    train={"length": "2 steps"},
    eval=EvalConfig(images=2),
  )


def write(folder, kind):
  """Writes images with every level of 12 bits, or of reflectance."""
  random = np.random.default_rng(0)
  most = 4095 if kind == "png" else 10000
  levels = np.linspace(0, most, SIZE * SIZE).round().astype(np.uint16)
  for number in range(8):
    image = random.permutation(levels).reshape(SIZE, SIZE)
    if kind == "png":
      Image.fromarray(image).save(folder / f"{number}.png")
    else:
      np.save(folder / f"{number}.npy", image.astype(np.float32))
  return levels, (0.0, float(most))


@pytest.mark.parametrize("kind", ["png", "npy"])
def test_all_levels_reach_the_device(tmp_path, kind):
  levels, value_range = write(tmp_path, kind)
  data = config(tmp_path, value_range).data
  source = sources.open_source(data, "train")
  rows = np.arange(8)
  batch = next(pipeline.train_batches(source, data, seed=0, rows=rows))
  evaluated = next(pipeline.eval_batches(source, data, batch_size=8, rows=rows))
  for images in (batch["image"], evaluated["image"]):
    assert images.dtype == np.float32
    for image in images:
      found = np.sort(image, axis=None) / 255 * value_range[1]
      np.testing.assert_allclose(found, levels, atol=1e-2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp("x_rays")
  _, value_range = write(folder, "png")
  workdir = tmp_path_factory.mktemp("run")
  report = runs.train(config(folder, value_range), workdir)
  return folder, workdir, report


@pytest.mark.slow
def test_the_tools_take_them(trained, tmp_path):
  folder, workdir, _ = trained
  one = str(folder / "0.png")
  out = tmp_path / "features.npz"
  features.write(str(workdir), str(folder), str(out))
  found = np.load(out)["features"]
  model = mae_jax.from_pretrained(workdir)
  arrays = np.stack(
    [np.asarray(Image.open(folder / f"{k}.png")) for k in range(8)]
  )
  np.testing.assert_allclose(
    model.features(arrays[..., None]).values, found, atol=1e-5
  )
  applied = model.apply(model.params, arrays[..., None])
  np.testing.assert_allclose(applied, found, atol=1e-4)
  assert model.reconstruct(one).original.dtype == np.uint8
  reconstruct.write(str(workdir), one, str(tmp_path / "pictures"))
  attention_maps.write(str(workdir), one, str(tmp_path / "maps"))
  export.write(str(workdir), str(tmp_path / "served"))
  serve = stablehlo.load(tmp_path / "served")
  scaled = image_io.scale(arrays[..., None], (0.0, 4095.0))
  np.testing.assert_allclose(serve(scaled), found, atol=1e-4)


@pytest.mark.slow
def test_8_bits_give_the_results_of_before(tmp_path, tmp_path_factory):
  random = np.random.default_rng(0)
  for number in range(8):
    image = random.integers(0, 256, (SIZE, SIZE), np.uint8)
    Image.fromarray(image).save(tmp_path / f"{number}.png")
  params = []
  for value_range in ((), (0.0, 255.0)):
    workdir = tmp_path_factory.mktemp("run")
    runs.train(config(tmp_path, value_range), workdir)
    params.append(mae_jax.from_pretrained(workdir).params)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-4), *params
  )


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"value_range": (5.0, 5.0)}, "must be two numbers, the smaller one"),
    ({"randaugment": 9.0}, "works on 8 bits"),
    ({"color_jitter": 0.4}, "works on 8 bits"),
    ({"source": "digits"}, "is for image files"),
  ],
)
def test_what_needs_8_bits_is_refused(tmp_path, changes, words):
  data = config(tmp_path, (0.0, 4095.0)).data
  with pytest.raises(ConfigError, match=words):
    dataclasses.replace(data, **changes)
