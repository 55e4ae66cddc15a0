"""Tests of attention maps against weights computed in PyTorch."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from mae_jax.config import EvalConfig
from mae_jax.evals import attention_rollout
from mae_jax.models import factory
from mae_jax.tools import attention_maps
from mae_jax.utils.errors import ConfigError
from tests.helpers import runs, tiny
from tests.helpers.commands import command, write_images

CONFIG = tiny.config(
  train={"length": "3 steps"},
  eval=EvalConfig(images=0),
  data={"eval_split": ""},
)
NAMES = ("a.png", "b/c.png")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return write_images(tmp_path_factory.mktemp("images"), NAMES)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  runs.train(CONFIG, workdir)
  return workdir


def by_torch(params, x: np.ndarray, eps: float) -> list[np.ndarray]:
  """Returns the weights of each block, [heads, N, N], for tokens [N, D]."""

  def norm(x, p):
    scale, bias = (torch.tensor(np.asarray(p[k])) for k in ("scale", "bias"))
    return functional.layer_norm(x, x.shape[-1:], scale, bias, eps)

  def linear(x, p):
    kernel, bias = (torch.tensor(np.asarray(p[k])) for k in ("kernel", "bias"))
    return x @ kernel + bias

  found = []
  x = torch.tensor(x)
  blocks = params["stack"]["blocks"]
  for layer in range(CONFIG.model.depth):
    block = jax_tree_slice(blocks, layer)
    normed = norm(x, block["norm1"])
    qkv = linear(normed, block["attn"]["qkv"])
    qkv = qkv.reshape(len(x), 3, CONFIG.model.heads, -1).permute(1, 2, 0, 3)
    q, k, v = qkv
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    found.append(weights.numpy())
    out = (weights @ v).permute(1, 0, 2).reshape(len(x), -1)
    x = x + linear(out, block["attn"]["proj"])
    hidden = functional.gelu(
      linear(norm(x, block["norm2"]), block["mlp"]["fc1"])
    )
    x = x + linear(hidden, block["mlp"]["fc2"])
  return found


def jax_tree_slice(tree, layer: int):
  if isinstance(tree, dict):
    return {name: jax_tree_slice(leaf, layer) for name, leaf in tree.items()}
  return tree[layer]


def test_weights_equal_those_computed_for_every_block(workdir, images):
  params = runs.params(workdir, CONFIG)["model"]["encoder"]
  encoder = factory.masked_autoencoder(CONFIG).encoder
  pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8)
  seen = attention_rollout.attention_function(encoder, CONFIG.data)(
    params, pixels
  )
  assert seen.weights.shape == (2, 4, 17, 17)
  np.testing.assert_allclose(seen.weights.sum(axis=-1), 1, rtol=1e-5)
  x = (pixels / 255 - np.array(CONFIG.data.mean)) / CONFIG.data.std
  x = x[None].astype(np.float32)
  # An encoder without blocks returns the input of the first block.
  config = dataclasses.replace(encoder.config, depth=1)
  bare = encoder.clone(config=config, final_norm=False)
  none = {
    name: np.zeros_like(leaf) if "kernel" in name or "bias" in name else leaf
    for name, leaf in params.items()
  }
  zero = jax_map(lambda leaf: np.zeros_like(leaf[:1]), none["stack"])
  shown = {name: leaf for name, leaf in params.items() if name != "norm"}
  tokens = bare.apply({"params": shown | {"stack": zero}}, x)
  start = np.concatenate([tokens.cls[:, None], tokens.patches], axis=1)[0]
  wanted = by_torch(params, start, encoder.config.norm_eps)
  np.testing.assert_allclose(seen.weights, wanted, rtol=0, atol=2e-6)
  whole = encoder.apply({"params": params}, x)
  np.testing.assert_allclose(seen.patches, whole.patches[0], atol=1e-5)


def jax_map(function, tree):
  if isinstance(tree, dict):
    return {name: jax_map(function, leaf) for name, leaf in tree.items()}
  return function(np.asarray(tree))


def test_rollout_is_a_product_of_matrices():
  random = np.random.default_rng(0)
  weights = random.random((3, 2, 5, 5))
  weights /= weights.sum(axis=-1, keepdims=True)
  total = np.eye(5)
  for block in weights:
    total = (block.mean(axis=0) + np.eye(5)) / 2 @ total
  np.testing.assert_allclose(
    attention_rollout.rollout(weights), total[0, 1:], rtol=1e-12
  )
  assert total[0].sum() == pytest.approx(1)


def test_colors_are_the_principal_components():
  random = np.random.default_rng(0)
  features = random.normal(size=(50, 6)) * (9, 5, 3, 0.1, 0.1, 0.1)
  colors = attention_rollout.FeatureColors(features)
  assert colors.shares.sum() > 0.99
  picture = colors(features)
  assert picture.shape == (50, 3)
  for axis in range(3):
    found = np.corrcoef(picture[:, axis], features[:, axis])[0, 1]
    assert abs(found) > 0.95
  with pytest.raises(ConfigError, match="use more images"):
    attention_rollout.FeatureColors(features[:3])


def test_an_overlay_is_brightest_at_the_largest_value():
  gray = np.full((8, 8, 1), 100, np.uint8)
  for place in range(4):
    values = np.zeros(4)
    values[place] = 2.0
    picture = attention_maps.overlay(gray, values, (2, 2)).sum(axis=-1)
    row, column = divmod(place, 2)
    quarter = np.zeros((8, 8), bool)
    quarter[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = True
    assert picture[quarter].mean() > 1.5 * picture[~quarter].mean()
  flat = attention_maps.overlay(gray, np.ones(4), (2, 2))
  assert (flat == flat[0, 0]).all()


def test_the_query_patch_is_framed():
  gray = np.full((8, 12, 1), 100, np.uint8)
  plain, framed = (
    attention_maps.overlay(gray, np.arange(4), (2, 2), token)
    for token in (0, 4)
  )
  frame = np.zeros((8, 12), bool)
  frame[4:, 6:] = True
  frame[5:7, 7:11] = False
  assert (framed[frame] == 255).all()
  assert (framed[~frame] == plain[~frame]).all()


@pytest.mark.slow
def test_files(workdir, images, tmp_path):
  out = tmp_path / "out"
  attention_maps.write(str(workdir), str(images), str(out), layer=1)
  kinds = {"original", "rollout", "features", "mean_of_heads", "sheet"}
  kinds |= {f"head_{number}" for number in range(1, 5)} | {"attention"}
  for name in NAMES:
    made = list((out / "images" / name.partition(".")[0]).iterdir())
    assert {path.stem for path in made} == kinds
  size = np.asarray(Image.open(out / "sheet.png")).shape
  assert size == (22 + 16 + 2 * (128 + 16 + 4) + 20, 4 + 4 * (128 + 4), 3)
  # The same maps as numbers.
  text = (out / "attention.csv").read_text()
  rows = list(csv.DictReader(text.splitlines()))
  assert [row["file"] for row in rows] == [x for x in NAMES for _ in range(6)]
  params = runs.params(workdir, CONFIG)["model"]["encoder"]
  encoder = factory.masked_autoencoder(CONFIG).encoder
  pixels = np.asarray(Image.open(out / "images" / "a" / "original.png"))
  seen = attention_rollout.attention_function(encoder, CONFIG.data)(
    params, pixels[..., None]
  )
  wanted = seen.weights[0][:, 0, 1:]  # block 1, class token
  with np.load(out / "images" / "a" / "attention.npz") as maps:
    np.testing.assert_allclose(
      maps["heads"], wanted.reshape(4, 4, 4), atol=1e-6
    )
    assert maps["rollout"].shape == (4, 4)
  head = rows[2]
  assert head["map"] == "head 1"
  assert float(head["lowest"]) == pytest.approx(wanted[0].min(), rel=1e-4)
  assert float(head["highest"]) == pytest.approx(wanted[0].max(), rel=1e-4)
  share = wanted[0].astype(float) / wanted[0].sum(dtype=float)
  entropy = -(share * np.log2(share)).sum()
  assert float(head["entropy"]) == pytest.approx(entropy, abs=1e-3)
  # Pictures differ between query tokens and are equal for the same one.
  pictures = []
  for number, query in enumerate((None, (2, 3), (2, 3))):
    place = tmp_path / str(number)
    attention_maps.write(
      str(workdir), str(images / "a.png"), str(place), query=query
    )
    pictures.append((place / "images" / "a" / "head_1.png").read_bytes())
  assert pictures[0] != pictures[1] == pictures[2]


def test_larger_images_have_finer_maps(workdir, images, tmp_path):
  out = tmp_path / "out"
  attention_maps.write(str(workdir), str(images), str(out), image_size=(16, 12))
  with Image.open(out / "images" / "a" / "rollout.png") as picture:
    assert picture.size == (12, 16)


def test_unreadable_images_are_skipped(workdir, images, tmp_path, capsys):
  folder = tmp_path / "in"
  write_images(folder, ("good.png",))
  (folder / "bad.png").write_bytes(b"no image")
  attention_maps.write(str(workdir), str(folder), str(tmp_path / "out"))
  message = capsys.readouterr()
  assert message.err.count("bad.png cannot be read") == 1
  assert "2 images (1 cannot be read)" in message.out
  (folder / "good.png").unlink()
  with pytest.raises(ConfigError, match="none of the first 1"):
    attention_maps.write(str(workdir), str(folder), str(tmp_path / "none"))
  assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ({"layer": 3}, "--layer=3: the encoder has blocks 1 to 2"),
    ({"query": (5, 1)}, "--query=5,1: the image has 4 rows and 4 columns"),
    ({"fit": "x"}, "--fit='x'"),
    ({"image_size": (9, 9)}, "--image_size"),
  ],
)
def test_mistakes(workdir, images, tmp_path, flag, message: str):
  with pytest.raises(ConfigError, match=message):
    attention_maps.write(
      str(workdir), str(images), str(tmp_path / "out"), **flag
    )


@pytest.mark.slow
def test_the_command(workdir, images, tmp_path):
  out = tmp_path / "out"
  flags = (f"--checkpoint={workdir}", f"--images={images}", f"--out={out}")
  found = command("attention", *flags, "--query=1,4")
  assert found.returncode == 0, found.stderr
  assert f"{out}: attention of block 2 in 2 images" in found.stdout
  found = command("attention", *flags, "--query=middle")
  assert found.returncode == 1
  assert "'middle' is no patch" in found.stderr
