"""Values that a format holds come back bit for bit over any route."""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mae_jax import checkpoints
from mae_jax.conversion import transformers as transformers_dialect
from mae_jax.tools import convert
from tests.conversion import test_outputs
from tests.helpers import facebook_model, model_outputs, sample_checkpoints
from tests.helpers.params import slow

SUFFIX = {
  "jax": "",
  "facebook": ".pth",
  "transformers": "",
  "timm": ".safetensors",
}
# Kinds of networks that each format holds completely. timm has no decoder,
# transformers no biases of keys with mean pooling, and neither has BatchNorm
# before the head.
HOLDS = {
  "facebook": ("encoder", "mae", "raw", "mean", "cls", "probe"),
  "transformers": ("encoder", "mae", "raw", "cls"),
  "timm": ("encoder", "mean", "cls"),
}
PAIRS = [
  (kind, first, second) if kind in ("mae", "cls") else slow(kind, first, second)
  for first, kinds in HOLDS.items()
  for second, others in HOLDS.items()
  for kind in kinds
  if first != second and kind in others
]


def arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads all arrays of a checkpoint."""
  found = checkpoints.ArrayReader(path)
  result = {name: found.read(name) for name in found.shapes}
  found.verify()
  return result


def tensors(path: pathlib.Path) -> dict[str, Any]:
  """Reads all tensors of a file with PyTorch or safetensors."""
  if path.suffix == ".pth":
    return {
      name: (str(x.dtype), x.view(torch.uint8 if x.ndim else x.dtype).numpy())
      for name, x in torch.load(path, weights_only=False)["model"].items()
    }
  if path.is_dir():
    path = path / "model.safetensors"
  with safe_open(path, framework="pt") as file:
    return {
      name: (str(x.dtype), x.view(torch.uint8).numpy())
      for name in file.keys()  # noqa: SIM118
      if (x := file.get_tensor(name)) is not None
    }


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
  assert found.keys() == wanted.keys()
  for name, value in wanted.items():
    np.testing.assert_equal(found[name], value, err_msg=name)
    if isinstance(value, np.ndarray):
      assert found[name].dtype == value.dtype == np.float32


def run(source: pathlib.Path, out: pathlib.Path, to: str, **flags: Any):
  convert.convert(str(source), str(out), to=to, **flags)
  return out


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """A function that writes a checkpoint, and its weights in a format, once.

  The values of a bfloat16 checkpoint are those that bfloat16 holds exactly.
  """
  root = tmp_path_factory.mktemp("written")

  @functools.cache
  def write(kind: str, dtype: str, to: str = "checkpoint") -> pathlib.Path:
    path = root / f"{kind}-{dtype}-{to}{SUFFIX.get(to, '')}"
    if to != "checkpoint":
      return run(write(kind, dtype), path, to, dtype=dtype)
    if dtype == "float32":
      return sample_checkpoints.save(path, kind)
    rounded = sample_checkpoints.in_bfloat16(
      sample_checkpoints.params(kind, sample_checkpoints.config(kind))
    )
    before = checkpoints.read_metadata(write(kind, "float32"))
    sample_checkpoints.save_tree(path, rounded, before)
    return path

  return write


@pytest.mark.parametrize("dtype", ["float32", slow("bfloat16")])
@pytest.mark.parametrize(("kind", "first", "second"), PAIRS)
def test_there_across_and_back(
  written, kind: str, first: str, second: str, dtype: str, tmp_path
):
  """Converts jax -> first -> second -> jax, with the run's settings."""
  start = written(kind, dtype)
  b = run(written(kind, dtype, first), tmp_path / f"b{SUFFIX[second]}", second)
  direct = written(kind, dtype, second)
  end = run(b, tmp_path / "end", "jax")
  assert_same(tensors(b), tensors(direct))
  assert {kind for kind, _ in tensors(b).values()} <= {
    f"torch.{dtype}",
    "torch.int64",  # BatchNorm's counter
  }
  assert_same(arrays(end), arrays(start))
  before, after = (
    checkpoints.read_metadata(start),
    checkpoints.read_metadata(end),
  )
  assert after.config == before.config
  assert after.class_names == before.class_names
  assert after.data == before.data
  assert after.origin["dialect"] == second
  # Exports in the original dtype by default.
  again = run(end, tmp_path / f"d{SUFFIX[second]}", second)
  assert_same(tensors(again), tensors(direct))


@pytest.mark.parametrize(
  "dtype", [torch.float32, slow(torch.bfloat16), slow(torch.half)]
)
@pytest.mark.parametrize("kind", sample_checkpoints.KINDS)
def test_files_of_the_reference(kind: str, dtype, tmp_path: pathlib.Path):
  """Published files without our metadata; position tables of any origin."""
  model = facebook_model.randomize(facebook_model.MODELS[kind]()).to(dtype)
  file = tmp_path / "theirs.pth"
  args = argparse.Namespace(norm_pix_loss=True, resume=None)
  torch.save({"model": model.state_dict(), "args": args}, file)
  flags = {"heads": 4}
  if "mask_token" in model.state_dict():
    flags["decoder_heads"] = 2
  ours = run(file, tmp_path / "ours", "jax", **flags)
  back = run(ours, tmp_path / "back.pth", "facebook")
  assert_same(tensors(back), tensors(file))
  straight = run(file, tmp_path / "straight.pth", "facebook", **flags)
  assert_same(tensors(straight), tensors(file))


@pytest.mark.parametrize("kind", ["encoder", "mae", "cls"])
def test_files_of_transformers(kind: str, tmp_path: pathlib.Path):
  """Both versions' names are read, and the Hub's are written."""
  if kind == "mae":
    model = test_outputs.transformers_autoencoder()
  else:
    model = test_outputs.transformers_classifier()
    model = model.vit if kind == "encoder" else model
  model.save_pretrained(tmp_path / "theirs")
  pixels = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
  ours = run(tmp_path / "theirs", tmp_path / "ours", "jax", **pixels)
  back = run(ours, tmp_path / "back", "transformers")
  found = {
    name.replace("decoder_encoder.layer", "decoder_layers"): value
    for name, value in tensors(tmp_path / "theirs").items()
    if not name.startswith("pooler.")
  }
  assert_same(tensors(back), found)
  # The modules' own names are aliases.
  state = {k: v for k, v in model.state_dict().items() if "pooler" not in k}
  modules = tmp_path / "modules"
  modules.mkdir()
  torch.save(state, modules / "pytorch_model.bin")
  config = (tmp_path / "theirs" / "config.json").read_text()
  (modules / "config.json").write_text(config)
  assert not state.keys() & found.keys() >= found.keys()
  again = run(modules, tmp_path / "again", "transformers", **pixels)
  assert_same(tensors(again), found)
  kept = json.loads((tmp_path / "back" / "config.json").read_text())
  wanted = json.loads(config)
  for name in kept.keys() & wanted.keys() - {"architectures", "dtype"}:
    assert kept[name] == wanted[name], name


def test_what_a_config_leaves_out_is_the_default(tmp_path: pathlib.Path):
  """Defaults equal those of transformers' class."""
  model = test_outputs.transformers_autoencoder(
    num_attention_heads=12, decoder_num_attention_heads=16, mask_ratio=0.75
  )
  model.save_pretrained(tmp_path / "theirs")
  file = tmp_path / "theirs" / "config.json"
  content = json.loads(file.read_text())
  for name in transformers_dialect._DEFAULTS.keys() - {"image_size"}:
    del content[name]
  file.write_text(json.dumps(content))
  pixels = {"mean": (0.5,), "std": (0.25,)}
  ours = run(tmp_path / "theirs", tmp_path / "ours", "jax", **pixels)
  x, _ = model_outputs.images()
  config = checkpoints.read_metadata(ours).config
  assert config.objective.mask_ratio == 0.75
  assert config.objective.target == "raw"
  loaded = type(model).from_pretrained(
    tmp_path / "theirs", attn_implementation="eager"
  )
  draw = model_outputs.noise()
  np.testing.assert_allclose(
    model_outputs.predictions(ours, x, draw)[0],
    test_outputs.transformers_outputs(loaded.eval(), "mae"),
    rtol=0,
    atol=1e-5,
  )


def test_several_files_with_an_index(tmp_path: pathlib.Path):
  model = test_outputs.transformers_autoencoder()
  model.save_pretrained(tmp_path / "one")
  model.save_pretrained(tmp_path / "many", max_shard_size="50KB")
  assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
  pixels = {"mean": (0.5,), "std": (0.25,)}
  one = run(tmp_path / "one", tmp_path / "a", "jax", **pixels)
  many = run(tmp_path / "many", tmp_path / "b", "jax", **pixels)
  assert_same(arrays(many), arrays(one))


@pytest.mark.parametrize("to", ["facebook", "timm"])
def test_rectangles(to: str, tmp_path: pathlib.Path):
  """Sizes, patches and channels that transformers does not support."""
  data = sample_checkpoints.DATA | {
    "image_size": (18, 32),
    "channels": 2,
    "mean": (0.4, 0.5),
    "std": (0.2, 0.3),
  }
  model = sample_checkpoints.MODEL | {"patch_size": (6, 8)}
  start = sample_checkpoints.save(
    tmp_path / "start", "mean", data=data, model=model
  )
  out = run(start, tmp_path / f"out{SUFFIX[to]}", to)
  end = run(out, tmp_path / "end", "jax")
  assert_same(arrays(end), arrays(start))
  assert (
    checkpoints.read_metadata(end).config
    == checkpoints.read_metadata(start).config
  )
  if to == "facebook":
    state = torch.load(out, weights_only=False)["model"]
  else:
    state = load_file(out)
  assert tuple(state["patch_embed.proj.weight"].shape) == (48, 2, 6, 8)


def test_averaged_parameters_are_taken(tmp_path: pathlib.Path):
  classify = {"pooling": "mean", "ema": 0.9}
  start = sample_checkpoints.save(tmp_path / "start", "mean", classify=classify)
  end = run(run(start, tmp_path / "a.pth", "facebook"), tmp_path / "end", "jax")
  wanted = {
    name.replace("averaged/", "model/"): value
    for name, value in arrays(start).items()
    if name.startswith("averaged/")
  }
  assert wanted
  assert_same(arrays(end), wanted)
  assert checkpoints.read_metadata(end).config.classify.ema == 0


@pytest.mark.slow
def test_the_encoder_alone(tmp_path: pathlib.Path):
  for kind in ("mae", "cls"):
    start = sample_checkpoints.save(tmp_path / kind, kind)
    wanted = {
      name: value
      for name, value in arrays(start).items()
      if name.startswith("model/encoder/")
    }
    a = run(start, tmp_path / f"{kind}_a", "jax", encoder_only=True)
    assert_same(arrays(a), wanted)
    file = run(start, tmp_path / f"{kind}.pth", "facebook")
    b = run(file, tmp_path / f"{kind}_b", "jax", encoder_only=True)
    assert_same(arrays(b), wanted)
    before = checkpoints.read_metadata(start).config
    for path in (a, b):
      after = checkpoints.read_metadata(path).config
      assert (after.model, after.task) == (before.model, "pretrain")


def test_bfloat16_is_rounded_to_nearest(tmp_path: pathlib.Path):
  start = sample_checkpoints.save(tmp_path / "start", "mae")
  out = run(start, tmp_path / "out", "transformers", dtype="bfloat16")
  with safe_open(out / "model.safetensors", framework="numpy") as file:
    found = file.get_tensor("decoder.decoder_pred.weight")
  wanted = arrays(start)["model/decoder/pred/kernel"].T
  assert found.dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(
    found.astype(np.float32), wanted.astype(ml_dtypes.bfloat16).astype("f4")
  )
