"""Tests of weights that leave something open."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

import mae_jax
from mae_jax.tools import convert


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
  """A ViTMAE of transformers with zero positions and no processor."""
  path = tmp_path_factory.mktemp("vit_mae")
  config = transformers.ViTMAEConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=64, decoder_hidden_size=32, decoder_num_hidden_layers=1,
    decoder_num_attention_heads=4, decoder_intermediate_size=64, image_size=16,
    patch_size=4,
  )  # fmt: skip
  transformers.ViTMAEForPreTraining(config).save_pretrained(path)
  return path


def test_a_way_out_that_only_the_command_has(tmp_path):
  safetensors.numpy.save_file({"conv1": np.ones(3)}, tmp_path / "x.safetensors")
  text = "check that it is the right file"
  with pytest.raises(mae_jax.ConfigError, match=f"{text}$"):
    mae_jax.from_pretrained(tmp_path / "x.safetensors")
  with pytest.raises(mae_jax.ConfigError, match=f"{text}, or .* with --from"):
    convert.convert(str(tmp_path / "x.safetensors"), inspect=True)


def test_a_usual_prefix_is_a_note(tmp_path):
  """Warnings are errors here."""
  path = tmp_path / "x.pth"
  mae_jax.from_pretrained("digits").save_pretrained(path, "facebook")
  content = torch.load(path, weights_only=False)
  weights = content["model"]
  for prefix in ("module.", "model."):
    content["model"] = {prefix + name: x for name, x in weights.items()}
    torch.save(content, path)
    model = mae_jax.from_pretrained(path)
    assert any(f"begin with {prefix!r}" in note for note in model.notes)


def test_errors_name_the_arguments(untrained):
  with pytest.raises(mae_jax.ConfigError, match="pass mean and std") as caught:
    mae_jax.from_pretrained(untrained)
  assert "convert" not in str(caught.value)
  pixels = {"mean": 0.5, "std": [0.5, 0.5, 0.5]}
  with pytest.raises(mae_jax.ConfigError, match="pass positions=keep"):
    mae_jax.from_pretrained(untrained, **pixels)
  with pytest.warns(UserWarning, match="they are kept"):
    mae_jax.from_pretrained(untrained, positions="keep", **pixels)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    model = mae_jax.from_pretrained(untrained, positions="sincos", **pixels)
  assert model.kind == "autoencoder"
  assert model.config.data.mean == (0.5,)
  with pytest.raises(mae_jax.ConfigError, match="known are keep, sincos"):
    mae_jax.from_pretrained(untrained, positions="zero", **pixels)
