"""Weights as training scripts and other libraries leave them.

Prefixes, containers and objects beside the tensors, Flax's files, and the
variants of timm that a plain ViT can represent.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import sys
import types
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from flax import serialization, traverse_util

with warnings.catch_warnings():
  warnings.simplefilter("ignore")  # timm imports parts that PyTorch deprecates
  import timm
  from timm.models import vision_transformer

from mae_jax.conversion import load, model_info
from mae_jax.tools import convert
from mae_jax.utils.errors import ConfigError
from tests.conversion import test_refusals
from tests.helpers import facebook_model, model_outputs

SIZES = {
  "img_size": 24,
  "patch_size": 6,
  "embed_dim": 48,
  "depth": 2,
  "num_heads": 4,
  "mlp_ratio": 2.0,
}
PIXELS = {"mean": (0.5,), "std": (0.5,)}
HINTS = model_info.ModelOverrides(heads=4, **PIXELS)


def timm_model(**changes: Any) -> torch.nn.Module:
  """Builds a small network of timm with random parameters."""
  sizes: dict[str, Any] = SIZES | {"num_classes": 0} | changes
  model = vision_transformer.VisionTransformer(**sizes)
  return facebook_model.randomize(model)


@torch.no_grad()
def outputs(model: torch.nn.Module) -> np.ndarray:
  _, pixels = model_outputs.images()
  if model.num_classes:
    return model(pixels).numpy()
  return model.forward_features(pixels).numpy()


def check_same(path: pathlib.Path, model: torch.nn.Module, **flags: Any):
  """Checks that a file gives the outputs of timm's model."""
  out = path.parent / f"{path.name}_jax"
  convert.convert(str(path), str(out), to="jax", **flags)
  x, _ = model_outputs.images()
  read = model_outputs.logits if model.num_classes else model_outputs.tokens
  np.testing.assert_allclose(read(out, x), outputs(model), rtol=0, atol=2e-5)


# Prefixes, containers and objects


@pytest.mark.parametrize(
  ("prefix", "others", "left"),
  [
    ("model.", {}, ""),
    ("backbone.", {"head.weight": 3, "neck.a": 1, "neck.b": 1}, "head (1), ne"),
    ("encoder.", {"decoder.blocks.0.norm1.weight": 3}, "decoder (1)"),
    ("module.encoder.", {"module.queue": 3}, "module.queue (1)"),
    ("base_encoder.", {"momentum_encoder.patch_embed.proj.weight": 3}, "momen"),
    ("teacher.backbone.", {"student.backbone.patch_embed.proj.weight": 3}, "s"),
    ("model._orig_mod.", {}, ""),
    ("module.", {}, ""),
    ("_orig_mod.module.", {}, ""),
  ],
)
def test_a_common_prefix_is_removed(prefix, others, left, tmp_path):
  wanted = test_refusals.state("encoder")
  found = {f"{prefix}{name}": x for name, x in wanted.items()}
  extra = {name: torch.ones(size) for name, size in others.items()}
  torch.save({"state_dict": extra | found}, tmp_path / "x.ckpt")
  weights = load.open_weights(tmp_path / "x.ckpt", overrides=HINTS)
  np.testing.assert_array_equal(
    weights.read("model/encoder/norm/bias"), wanted["norm.bias"]
  )
  note = f"the names of tensors begin with {prefix!r}, which is removed"
  assert note in weights.notes
  told = f"tensors without {prefix!r} are left out: {left}"
  assert any(x.startswith(told) for x in weights.notes) == bool(left)


@pytest.mark.parametrize(
  ("block", "told"),
  [
    ("blocks.1._orig_mod.", ["contain '_orig_mod.'"]),
    (
      "blocks.1._fsdp_wrapped_module._checkpoint_wrapped_module.",
      ["contain '_fsdp_wrapped_module.'"],
    ),
  ],
)
@pytest.mark.parametrize("prefix", ["", "_fsdp_wrapped_module.", "model."])
def test_wrappers_of_single_blocks(prefix, block, told, tmp_path):
  """Reads names of torch.compile, FSDP and activation checkpointing."""
  wanted = test_refusals.state("encoder")
  found = {
    prefix + name.replace("blocks.1.", block): x for name, x in wanted.items()
  }
  torch.save(found, tmp_path / "x.pt")
  weights = load.open_weights(tmp_path / "x.pt", overrides=HINTS)
  np.testing.assert_array_equal(
    weights.read("model/encoder/stack/blocks/norm1/bias")[1],
    wanted["blocks.1.norm1.bias"],
  )
  told = told + [f"begin with {prefix!r}"] * bool(prefix)
  for text in told:
    note = f"the names of tensors {text}, which is removed"
    assert note in weights.notes


@pytest.mark.parametrize(
  ("keys", "told"),
  [
    ("model_state_dict", ""),
    ("net", ""),
    ("model_state", ""),  # SlowFast and pycls
    ("weights", ""),
    ("module", ""),  # DeepSpeed's mp_rank_00_model_states.pt
    ("model.state_dict", ""),
    ("model_ema", "the weights are those of 'model_ema'"),
    ("teacher", "the weights are those of 'teacher'"),
  ],
)
def test_containers(keys: str, told: str, tmp_path: pathlib.Path):
  content: Any = test_refusals.state("encoder")
  for key in reversed(keys.split(".")):
    content = {key: content, "epoch": 3, "optimizer": {"state": {}}}
  if keys == "teacher":
    content["student"] = content["teacher"]
  torch.save(content, tmp_path / "x.pt")
  weights = load.open_weights(tmp_path / "x.pt", overrides=HINTS)
  notes = "; ".join(weights.notes)
  assert told in notes
  assert ("left out: 'student', other values of 30" in notes) == (
    keys == "teacher"
  )


@pytest.mark.parametrize("archive", [True, False])
def test_harmless_objects_are_not_read(archive: bool, tmp_path: pathlib.Path):
  extra = {
    "numpy": [np.float64(3), np.int64(2), np.bool_(True), np.arange(3)],
    "path": {pathlib.Path("a"): {pathlib.PurePosixPath("b")}},
    "date": [datetime.datetime.now(datetime.UTC), datetime.timedelta(1)],
    "dicts": [collections.defaultdict(list, {1: [2]})],
    "names": [argparse.Namespace(out=pathlib.Path("x"))],
    "more": [types.SimpleNamespace(a=1), collections.Counter("a")],
    "dtype": torch.float32,
  }
  content = {"state_dict": test_refusals.state("encoder"), **extra}
  file = tmp_path / "x.ckpt"
  torch.save(content, file, _use_new_zipfile_serialization=archive)
  weights = load.open_weights(file, overrides=HINTS)
  np.testing.assert_array_equal(
    weights.read("model/encoder/norm/bias"), content["state_dict"]["norm.bias"]
  )


def test_hyper_parameters_of_lightning(tmp_path, monkeypatch):
  """Reads them without Lightning and omegaconf; refuses others by name."""

  def made(module: str, name: str, kind: type = dict) -> Any:
    stand_in = types.ModuleType(module)
    made = type(name, (kind,), {"__module__": module})
    setattr(stand_in, name, made)
    for parent in (module.partition(".")[0], module.rpartition(".")[0], module):
      monkeypatch.setitem(sys.modules, parent, stand_in)
    return made({"lr": 0.1}) if kind is dict else made()

  content = {"state_dict": test_refusals.state("encoder")}
  hyper = made("pytorch_lightning.utilities.parsing", "AttributeDict")
  torch.save(content | {"hyper_parameters": hyper}, tmp_path / "x.ckpt")
  load.open_weights(tmp_path / "x.ckpt", overrides=HINTS)
  hyper["config"] = made("omegaconf.dictconfig", "DictConfig", object)
  hyper["config"].type = Any, dict, float
  torch.save(content | {"hyper_parameters": hyper}, tmp_path / "x.ckpt")
  load.open_weights(tmp_path / "x.ckpt", overrides=HINTS)
  hyper = made("own.settings", "Settings")
  torch.save(content | {"hyper_parameters": hyper}, tmp_path / "y.ckpt")
  with pytest.raises(ConfigError, match=r"contains own.settings.Settings"):
    load.open_weights(tmp_path / "y.ckpt", overrides=HINTS)


# timm's variants


@pytest.mark.parametrize(
  ("settings", "flags"),
  [
    ({"init_values": 0.1}, {}),
    ({"qkv_bias": False}, {}),
    ({"no_embed_class": True}, {"image_size": (24, 24)}),
    ({"global_pool": "avg", "num_classes": 5}, {}),
    ({"dynamic_img_size": True, "num_classes": 5}, {}),
  ],
)
def test_variants_of_timm(settings, flags, tmp_path: pathlib.Path):
  model = timm_model(**settings)
  torch.save(model.state_dict(), tmp_path / "x.pth")
  check_same(tmp_path / "x.pth", model, heads=4, **PIXELS, **flags)


def test_a_folder_of_timm_says_that_the_table_has_no_class(tmp_path):
  model = timm.create_model(
    "vit_tiny_patch16_224",
    **SIZES,
    num_classes=5,
    no_embed_class=True,
    pretrained_cfg_overlay={"input_size": (3, 24, 24)} | PIXELS,
  )
  facebook_model.randomize(model)
  folder = tmp_path / "theirs"
  timm.models.save_for_hf(model, folder, safe_serialization=True)
  check_same(folder, model)


def test_names_of_layer_scales(tmp_path: pathlib.Path):
  """DeiT III and DINOv2 train plain ViTs with other names."""
  model = timm_model(init_values=0.1)
  found = {
    name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): x
    for name, x in model.state_dict().items()
  }
  found["mask_token"] = torch.ones(1, 48)
  torch.save(found, tmp_path / "x.pth")
  check_same(tmp_path / "x.pth", model, heads=4, **PIXELS)


@pytest.mark.parametrize(
  ("settings", "text"),
  [
    ({"reg_tokens": 2}, r"has register tokens \(reg_token\)"),
    ({"qk_norm": True}, r"has norms of queries and keys \(blocks.0.attn"),
    ({"pre_norm": True}, r"has a norm before its blocks \(norm_pre.weight\)"),
    ({"global_pool": "map"}, "has a head that attends to tokens"),
    ({"global_pool": "avg"}, r"averages tokens before its only norm \(fc_norm"),
    ({"class_token": False, "global_pool": "avg", "fc_norm": False}, "cls_tok"),
  ],
)  # fmt: skip
def test_networks_of_timm_that_are_no_plain_vit(settings, text, tmp_path):
  torch.save(timm_model(**settings).state_dict(), tmp_path / "x.pth")
  with pytest.raises(ConfigError, match=text) as caught:
    load.open_weights(tmp_path / "x.pth", overrides=HINTS)
  assert "\n" not in str(caught.value)


# Flax


def flax_arrays(classes: int = 0, new: bool = False) -> dict[str, np.ndarray]:
  """Makes the arrays of a small network of vision_transformer or big_vision."""
  random = np.random.default_rng(0)
  norm2, attention, mlp = (
    ("LayerNorm_1", "MultiHeadDotProductAttention_0", "MlpBlock_0")
    if new
    else ("LayerNorm_2", "MultiHeadDotProductAttention_1", "MlpBlock_3")
  )
  table = "pos_embedding" if new else "Transformer/posembed_input/pos_embedding"
  shapes = {
    "cls": (1, 1, 48),
    table: (1, 16 if new else 17, 48),
    "embedding/kernel": (6, 6, 3, 48),
    "embedding/bias": (48,),
    "Transformer/encoder_norm/scale": (48,),
    "Transformer/encoder_norm/bias": (48,),
  }
  for layer in range(2):
    block = f"Transformer/encoderblock_{layer}"
    for norm in ("LayerNorm_0", norm2):
      shapes |= {f"{block}/{norm}/{x}": (48,) for x in ("scale", "bias")}
    for name in ("query", "key", "value"):
      shapes[f"{block}/{attention}/{name}/kernel"] = (48, 4, 12)
      shapes[f"{block}/{attention}/{name}/bias"] = (4, 12)
    shapes[f"{block}/{attention}/out/kernel"] = (4, 12, 48)
    shapes[f"{block}/{attention}/out/bias"] = (48,)
    for name, rows, columns in (("Dense_0", 48, 96), ("Dense_1", 96, 48)):
      shapes[f"{block}/{mlp}/{name}/kernel"] = (rows, columns)
      shapes[f"{block}/{mlp}/{name}/bias"] = (columns,)
  if classes:
    shapes |= {"head/kernel": (48, classes), "head/bias": (classes,)}
  return {
    name: (random.normal(size=shape) / 4).astype(np.float32)
    for name, shape in shapes.items()
  }


def loaded_by_timm(path: pathlib.Path, classes: int, new: bool = False):
  """Lets timm's own loader of `.npz` read a file."""
  # timm uses the exact GELU, and Flax computes the tanh approximation.
  model = timm_model(
    num_classes=classes, act_layer="gelu_tanh", no_embed_class=new
  )
  model.load_pretrained(str(path))
  return model.eval()


@pytest.mark.parametrize("classes", [0, 5])
@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("prefix", ["", "params/"])
def test_npz_is_read_as_by_timm(classes, new, prefix, tmp_path):
  arrays = flax_arrays(classes, new)
  if new and not prefix:
    prefix = "params/img/"
  arrays = {f"{prefix}{name}": x for name, x in arrays.items()}
  arrays |= {"opt/step": np.int64(3)} if prefix else {}
  np.savez(tmp_path / "x.npz", **arrays)
  if prefix and not new:  # timm takes this prefix for big_vision's
    plain = {k.removeprefix(prefix): x for k, x in arrays.items()}
    np.savez(tmp_path / "timm.npz", **plain)
  else:
    (tmp_path / "timm.npz").symlink_to(tmp_path / "x.npz")
  model = loaded_by_timm(tmp_path / "timm.npz", classes, new)
  flags = {"image_size": (24, 24)} if new else {}
  check_same(tmp_path / "x.npz", model, **flags)
  info = load.open_weights(
    tmp_path / "x.npz",
    overrides=model_info.ModelOverrides(**flags),
  ).info
  assert (info.heads, info.activation) == (4, "gelu_tanh")
  assert (info.mean, info.std) == ((0.5,), (0.5,))


@pytest.mark.parametrize("key", ["params", "target"])
def test_msgpack_is_read_as_npz(key: str, tmp_path: pathlib.Path):
  arrays = flax_arrays(5)
  np.savez(tmp_path / "x.npz", **arrays)
  tree = {key: traverse_util.unflatten_dict(arrays, sep="/"), "step": 3}
  (tmp_path / "x").write_bytes(serialization.msgpack_serialize(tree))
  model = loaded_by_timm(tmp_path / "x.npz", 5)
  check_same(tmp_path / "x", model)


def test_stacked_blocks_and_bfloat16(tmp_path: pathlib.Path):
  """big_vision stacks blocks, and NumPy has no bfloat16."""
  arrays = flax_arrays(new=True)
  first = "Transformer/encoderblock_0/"
  stacked = {
    name.replace("encoderblock_0", "encoderblock"): np.stack(
      [x, arrays[name.replace("encoderblock_0", "encoderblock_1")]]
    )
    for name, x in arrays.items()
    if name.startswith(first)
  }
  rest = {k: x for k, x in arrays.items() if "encoderblock" not in k}
  np.savez(tmp_path / "x.npz", **rest, **stacked)
  model = loaded_by_timm(tmp_path / "x.npz", 0, new=True)
  size = {"image_size": (24, 24)}
  check_same(tmp_path / "x.npz", model, **size)
  half = torch.from_numpy(arrays["embedding/bias"]).bfloat16()
  # As np.savez writes bfloat16 of ml_dtypes.
  stored = half.view(torch.int16).numpy().view("V2")
  np.savez(tmp_path / "y.npz", **arrays | {"embedding/bias": stored})
  weights = load.open_weights(
    tmp_path / "y.npz", overrides=model_info.ModelOverrides(**size)
  )
  np.testing.assert_array_equal(
    weights.read("model/encoder/patch_embed/bias"), half.float()
  )


def test_files_of_flax_that_are_refused(tmp_path: pathlib.Path):
  def refuse(text: str, **arrays: np.ndarray) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ConfigError, match=text) as caught:
      load.open_weights(tmp_path / "x.npz")
    assert "\n" not in str(caught.value)

  arrays = flax_arrays(5)
  objects = {"a": np.array([{}], object)}
  refuse("or contain objects, which are not loaded", **objects)
  refuse("no array embedding/kernel, .* has x, ...", x=np.ones(3))
  layer = {"pre_logits/kernel": np.ones((48, 48), np.float32)}
  refuse("a layer in front of its head", **arrays | layer)
  del arrays["Transformer/encoderblock_1/LayerNorm_0/bias"]
  refuse("no array Transformer/encoderblock_1/LayerNorm_0/bias", **arrays)
  data = (tmp_path / "x.npz").read_bytes()
  (tmp_path / "x.npz").write_bytes(data[: len(data) // 2])
  (tmp_path / "x").write_bytes(data[: len(data) // 2])
  (tmp_path / "y.npz").touch()
  for name in ("x.npz", "x", "y.npz"):
    text = r"is not a complete NumPy \(.npz\) file .*truncated"
    with pytest.raises(ConfigError, match=text):
      load.open_weights(tmp_path / name)
  for damaged in (b"\x81\xa1a", b""):
    (tmp_path / "y.msgpack").write_bytes(damaged)
    with pytest.raises(ConfigError, match="is not a complete msgpack file"):
      load.open_weights(tmp_path / "y.msgpack")
  np.savez(tmp_path / "x.npz", **flax_arrays())
  with pytest.raises(ConfigError, match="are only read; use --to=timm"):
    convert.convert(
      str(tmp_path / "x.npz"), str(tmp_path / "y"), to="vision_transformer"
    )
  torch.save(test_refusals.state("encoder"), tmp_path / "z.pth")
  with pytest.raises(ConfigError, match=r"is no .npz or msgpack file of Flax"):
    load.open_weights(tmp_path / "z.pth", weight_format="vision_transformer")
