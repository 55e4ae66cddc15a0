"""Networks on images of another size equal PyTorch's with its interpolation."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
import pytest
import torch

from mae_jax.evals import load_model
from mae_jax.models import classifiers
from mae_jax.tools import convert, predict, reconstructor
from mae_jax.utils.errors import ConfigError
from tests.helpers import facebook_model, runs, sample_checkpoints
from tests.helpers.commands import write_images
from tests.helpers.params import slow

SIZE = (30, 18)  # 5 x 3 patches, of a network of 4 x 4
GRID = (5, 3)


def in_pytorch(path: pathlib.Path, kind: str) -> torch.nn.Module:
  """Returns a network in the reference's layout, with interpolated tables."""
  file = path.parent / "theirs.pth"
  convert.convert(str(path), str(file), to="facebook")
  model = facebook_model.MODELS[kind]()
  model.load_state_dict(torch.load(file, weights_only=False)["model"])
  for name in ("pos_embed", "decoder_pos_embed"):
    if not hasattr(model, name):
      continue
    table = getattr(model, name).data
    cells = table[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
      cells, GRID, mode="bicubic", align_corners=False
    )
    rows = resized.permute(0, 2, 3, 1).flatten(1, 2)
    whole = torch.cat([table[:, :1], rows], dim=1)
    setattr(model, name, torch.nn.Parameter(whole))
  return model.eval()


def batch() -> tuple[np.ndarray, torch.Tensor]:
  """Samples uint8 images, and the same images normalized for PyTorch."""
  pixels = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)
  data = sample_checkpoints.DATA
  x = (pixels / 255 - np.array(data["mean"])) / np.array(data["std"])
  return pixels, torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32)


@pytest.mark.parametrize("kind", ["mean", slow("cls"), "probe"])
def test_a_classifier(kind: str, tmp_path: pathlib.Path):
  path = sample_checkpoints.save(tmp_path / "ours", kind)
  mesh = runs.devices_mesh(2, fsdp=2)
  found = load_model.load(path, mesh, head=True)
  found = load_model.resize(found, SIZE, mesh)
  assert found.config.data.image_size == SIZE
  pixels, x = batch()
  with torch.no_grad():
    wanted = in_pytorch(path, kind)(x).numpy()
  with jax.set_mesh(mesh):
    out = jax.jit(found.classifier.logits)(found.params, pixels)
  np.testing.assert_allclose(out, wanted, atol=1e-5)


def test_an_autoencoder(tmp_path: pathlib.Path):
  path = sample_checkpoints.save(tmp_path / "ours", "mae")
  network = reconstructor.load(path, image_size=SIZE)
  assert network.grid == GRID
  pixels, x = batch()
  noise = torch.rand(2, 15, generator=torch.Generator().manual_seed(0))
  order = noise.argsort(dim=1)
  hidden = np.ones((2, 15), bool)
  for row, ids in zip(hidden, order, strict=True):
    row[ids[:6]] = False
  with torch.no_grad():
    wanted = in_pytorch(path, "mae")(x, noise, keep=6).numpy()
  np.testing.assert_allclose(network.predict(pixels, hidden), wanted, atol=1e-5)


def test_averages_are_resized_too(tmp_path: pathlib.Path):
  settings = sample_checkpoints.config("mean")
  mesh = runs.devices_mesh()
  path = sample_checkpoints.save(tmp_path / "ours", "mean")
  found = load_model.load(path, mesh)
  found.params[classifiers.AVERAGED] = found.params[classifiers.MODEL]
  resized = load_model.resize(found, SIZE, mesh)
  for role in (classifiers.MODEL, classifiers.AVERAGED):
    table = resized.params[role]["encoder"]["pos_embed"]
    assert table.shape == (1, 16, 48)
  same = load_model.resize(found, settings.data.image_size, mesh)
  assert same is found


def test_predict_prepares_images_of_this_size(tmp_path: pathlib.Path, capsys):
  path = sample_checkpoints.save(tmp_path / "ours", "mean")
  images = write_images(tmp_path / "images", ["a.png"])
  predict.write(str(path), str(images), top=1, image_size=SIZE)
  larger = capsys.readouterr().out
  predict.write(str(path), str(images), top=1)
  assert larger.splitlines()[0] != capsys.readouterr().out.splitlines()[0]


def test_a_size_that_patches_do_not_fill(tmp_path: pathlib.Path):
  path = sample_checkpoints.save(tmp_path / "ours", "mean")
  images = write_images(tmp_path / "images", ["a.png"])
  with pytest.raises(ConfigError, match="--image_size=20 is not a multiple"):
    predict.write(str(path), str(images), image_size=(24, 20))
