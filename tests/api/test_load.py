"""Tests of weights that leave something open."""

from __future__ import annotations

import warnings

import pytest
import transformers

import mae_jax


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
