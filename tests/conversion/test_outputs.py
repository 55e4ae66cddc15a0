"""Converted networks compute the same outputs, in both directions.

References are transformers' classes, which load the written files, and the
reference's layout in plain PyTorch (`facebook_model`).
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from mae_jax.tools import convert
from tests.helpers import (
  facebook_model,
  model_outputs,
  numpy_reference,
  sample_checkpoints,
  torch_weights,
)
from tests.helpers.params import slow

SAME = {"rtol": 0, "atol": 1e-5}
AUTOENCODERS = ("mae", "raw")
CLASSIFIERS = ("mean", "cls", "probe")


def assert_close(kind: str, found: np.ndarray, wanted: np.ndarray) -> None:
  """Compares outputs, and prints the largest difference."""
  assert found.shape == wanted.shape
  assert np.abs(wanted).max() > 0.1
  difference = np.abs(found - wanted).max()
  print(f"{kind}: largest difference {difference:.1e}")
  np.testing.assert_allclose(found, wanted, **SAME)


@torch.no_grad()
def torch_outputs(model: torch.nn.Module, kind: str) -> np.ndarray:
  """Computes the outputs of a network in the reference's layout."""
  _, pixels = model_outputs.images()
  if kind in AUTOENCODERS:
    draw = model_outputs.noise()
    return model(pixels, torch.from_numpy(draw), keep=6).numpy()
  return model(pixels).numpy()


def jax_outputs(path: pathlib.Path, kind: str) -> np.ndarray:
  """Computes the outputs of the converted network."""
  x, _ = model_outputs.images()
  if kind in AUTOENCODERS:
    found, kept = model_outputs.predictions(path, x, model_outputs.noise())
    assert kept == 6
    return found
  read = model_outputs.logits if kind in CLASSIFIERS else model_outputs.tokens
  return read(path, x)


@pytest.mark.parametrize("kind", sample_checkpoints.KINDS)
def test_to_the_references_layout(kind: str, tmp_path: pathlib.Path):
  checkpoint = sample_checkpoints.save(tmp_path / "ours", kind)
  out = tmp_path / "theirs.pth"
  convert.convert(str(checkpoint), str(out), to="facebook")
  content = torch.load(out, weights_only=False)  # as the reference's scripts do
  model = facebook_model.MODELS[kind]().eval()
  assert str(model.load_state_dict(content["model"], strict=True)) == (
    "<All keys matched successfully>"
  )
  if kind in AUTOENCODERS:
    assert content["args"].norm_pix_loss is (kind == "mae")
  assert_close(kind, jax_outputs(checkpoint, kind), torch_outputs(model, kind))


@pytest.mark.parametrize("kind", sample_checkpoints.KINDS)
def test_from_the_references_layout(kind: str, tmp_path: pathlib.Path):
  """Positions are fixed in pre-training and trained in classifiers."""
  model = facebook_model.randomize(facebook_model.MODELS[kind]())
  if kind in ("encoder", *AUTOENCODERS):
    set_tables(model)
  file, out = tmp_path / "theirs.pth", tmp_path / "ours"
  args = argparse.Namespace(mask_ratio=0.6, norm_pix_loss=kind == "mae")
  torch.save({"model": model.state_dict(), "args": args, "epoch": 7}, file)
  flags = {"heads": 4}
  if kind in AUTOENCODERS:
    flags["decoder_heads"] = 2
  convert.convert(str(file), str(out), to="jax", **flags)
  assert_close(kind, jax_outputs(out, kind), torch_outputs(model, kind))


def set_tables(model: torch.nn.Module) -> None:
  with torch.no_grad():
    for name in ("pos_embed", "decoder_pos_embed"):
      if hasattr(model, name):
        table = getattr(model, name)
        rows = numpy_reference.position_table((4, 4), table.shape[-1])
        table.copy_(torch.from_numpy(np.pad(rows, ((1, 0), (0, 0)))))


@pytest.mark.parametrize("kind", ["mean", "cls", "probe", "encoder", "mae"])
def test_to_timm(kind: str, tmp_path: pathlib.Path):
  """Names are the reference's; BatchNorm is folded, the decoder left out."""
  checkpoint = sample_checkpoints.save(tmp_path / "ours", kind)
  out = tmp_path / "theirs.safetensors"
  convert.convert(str(checkpoint), str(out), to="timm")
  same = {"probe": "cls", "mae": "encoder"}.get(kind, kind)
  model = facebook_model.MODELS[same]().eval()
  model.load_state_dict(load_file(out), strict=True)
  read = model_outputs.logits if kind in CLASSIFIERS else model_outputs.tokens
  x, _ = model_outputs.images()
  assert_close(kind, read(checkpoint, x), torch_outputs(model, same))
  # And read as it is, without a checkpoint of ours.
  assert_close(kind, read(out, x), torch_outputs(model, same))


def torch_config(**changes) -> dict:
  return {
    "image_size": sample_checkpoints.SIZE,
    "patch_size": sample_checkpoints.PATCH,
    "num_channels": 3,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "attn_implementation": "eager",
  } | changes


def transformers_autoencoder(**changes) -> transformers.ViTMAEForPreTraining:
  """Builds a random ViTMAE with the reference's position tables."""
  config = transformers.ViTMAEConfig(
    **torch_config(
      decoder_hidden_size=32,
      decoder_num_hidden_layers=2,
      decoder_num_attention_heads=2,
      decoder_intermediate_size=128,
      mask_ratio=0.6,
    )
    | changes
  )
  model = transformers.ViTMAEForPreTraining(config).eval()
  torch_weights.randomize(model, seed=5)
  with torch.no_grad():
    for table in (
      model.vit.embeddings.position_embeddings,
      model.decoder.decoder_pos_embed,
    ):
      rows = numpy_reference.position_table((4, 4), table.shape[-1])
      table.copy_(torch.from_numpy(np.pad(rows, ((1, 0), (0, 0)))))
  return model


def transformers_classifier(**changes) -> torch.nn.Module:
  config = transformers.ViTConfig(**torch_config(num_labels=5) | changes)
  model = transformers.ViTForImageClassification(config).eval()
  torch_weights.randomize(model, seed=6)
  return model


def transformers_mean_classifier(**changes) -> torch.nn.Module:
  config = transformers.BeitConfig(
    **torch_config(
      num_labels=5,
      use_absolute_position_embeddings=True,
      layer_scale_init_value=0.0,
    )
    | changes
  )
  model = transformers.BeitForImageClassification(config).eval()
  torch_weights.randomize(model, seed=7)
  return model


@torch.no_grad()
def transformers_outputs(model: torch.nn.Module, kind: str) -> np.ndarray:
  _, pixels = model_outputs.images()
  if kind in AUTOENCODERS:
    return model(
      pixels, noise=torch.from_numpy(model_outputs.noise())
    ).logits.numpy()
  if kind == "encoder":
    return model(pixels).last_hidden_state.numpy()
  return model(pixels).logits.numpy()


CLASSES = {
  "encoder": transformers.ViTModel,
  "mae": transformers.ViTMAEForPreTraining,
  "raw": transformers.ViTMAEForPreTraining,
  "cls": transformers.ViTForImageClassification,
  "probe": transformers.ViTForImageClassification,
  "mean": transformers.AutoModelForImageClassification,  # a BEiT
}


@pytest.mark.parametrize(
  ("kind", "model"),
  [
    *((kind, {}) for kind in CLASSES),
    slow("mae", {"norm_eps": 1e-3, "activation": "gelu_tanh"}),
    slow("cls", {"norm_eps": 1e-12, "activation": "quick_gelu"}),
    slow("cls", {"activation": "relu"}),
    slow("cls", {"activation": "silu"}),
    slow("mean", {"norm_eps": 1e-3, "activation": "gelu_tanh"}),
  ],
)
def test_to_transformers(kind: str, model: dict, tmp_path: pathlib.Path):
  checkpoint = sample_checkpoints.save(
    tmp_path / "ours", kind, model=sample_checkpoints.MODEL | model
  )
  out = tmp_path / "theirs"
  convert.convert(str(checkpoint), str(out), to="transformers")
  extra = {"add_pooling_layer": False} if kind == "encoder" else {}
  loaded, info = CLASSES[kind].from_pretrained(
    out, output_loading_info=True, attn_implementation="eager", **extra
  )
  assert not any(info.values()), info
  assert_close(
    kind,
    jax_outputs(checkpoint, kind),
    transformers_outputs(loaded.eval(), kind),
  )
  if kind in AUTOENCODERS:
    assert loaded.config.norm_pix_loss is (kind == "mae")
    assert loaded.config.mask_ratio == 0.6
  if kind in ("cls", "probe", "mean"):
    assert tuple(loaded.config.id2label.values()) == sample_checkpoints.CLASSES
    assert loaded.config.label2id["fox"] == 3
  processor = transformers.AutoImageProcessor.from_pretrained(
    out, backend="pil"
  )
  assert tuple(processor.image_mean) == sample_checkpoints.DATA["mean"]
  assert tuple(processor.image_std) == sample_checkpoints.DATA["std"]
  assert processor.size["shortest_edge"] == 27  # 24 pixels of eval_crop=0.9
  assert processor.crop_size["height"] == processor.crop_size["width"] == 24


@pytest.mark.parametrize(
  ("kind", "changes"),
  [
    ("mae", {"layer_norm_eps": 1e-6}),
    ("mae", {"layer_norm_eps": 1e-3, "norm_pix_loss": True}),
    ("cls", {"hidden_act": "gelu_new"}),
    ("cls", {"hidden_act": "relu", "layer_norm_eps": 1e-5}),
    ("encoder", {}),
    ("mean", {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}),
  ],
)
def test_from_transformers(kind: str, changes: dict, tmp_path: pathlib.Path):
  if kind == "mae":
    model = transformers_autoencoder(**changes)
  elif kind == "cls":
    model = transformers_classifier(**changes)
  elif kind == "mean":
    model = transformers_mean_classifier(**changes)
  else:
    model = transformers_classifier(**changes).vit
  model.save_pretrained(tmp_path / "theirs")
  out = tmp_path / "ours"
  convert.convert(
    str(tmp_path / "theirs"), str(out), to="jax", mean=(0.5,), std=(0.25,)
  )
  assert_close(kind, jax_outputs(out, kind), transformers_outputs(model, kind))
