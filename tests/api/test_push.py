"""Tests of pushing a model to a stand-in for the Hub, and loading it back."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import mae_jax
from tests.helpers import fake_hub


@pytest.fixture
def server(tmp_path, monkeypatch):
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", tmp_path / "c")
  with fake_hub.serving() as found:
    monkeypatch.setenv("HF_ENDPOINT", found.endpoint)
    yield found


def test_a_network_goes_to_the_hub_and_back(server, capfd):
  model = mae_jax.from_pretrained("digits")
  images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
  url = model.push_to_hub(
    "me/digits",
    license="apache-2.0",
    results={"linear probe": 0.983},
    picture=model.reconstruct(images).sheet(),
    token="hf_secret",
  )
  assert url.endswith("me/digits")
  files = server.repos["me/digits"]
  assert {"README.md", "config.json", "model.safetensors", "picture.png"} <= {
    *files
  }
  card = files["README.md"].decode()
  assert "license: apache-2.0" in card
  assert "0.983" in card
  assert 'from_pretrained("hf://me/digits")' in card
  assert capfd.readouterr() == ("", "")
  again = mae_jax.from_pretrained("hf://me/digits")
  np.testing.assert_allclose(
    again.features(images).values, model.features(images).values, atol=1e-5
  )
  assert again.kind == "autoencoder"
  again.params = jax.tree.map(lambda x: 0.5 * x, again.params)
  again.push_to_hub("me/digits", license="apache-2.0", token="hf_secret")
  newest = mae_jax.from_pretrained("hf://me/digits")
  np.testing.assert_allclose(
    newest.features(images).values, again.features(images).values, atol=1e-5
  )


def test_mean_pooling_goes_to_timm(server):
  model = mae_jax.create_model(
    "vit_ti8", image_size=16, num_classes=2, width=32, depth=1, heads=4
  )
  model.push_to_hub("me/classes", token="hf_secret", license="mit")
  card = server.repos["me/classes"]["README.md"].decode()
  assert "library_name: timm" in card
  assert mae_jax.from_pretrained("hf://me/classes").kind == "classifier"


def test_mistakes(server, monkeypatch):
  model = mae_jax.from_pretrained("digits")
  with pytest.raises(mae_jax.ConfigError, match="no such repository"):
    mae_jax.from_pretrained("hf://me/nothing")
  with pytest.raises(mae_jax.ConfigError, match="format='jax' is not known"):
    model.push_to_hub("me/digits", format="jax")
  monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
  with pytest.raises(mae_jax.ConfigError, match="cannot be reached") as caught:
    mae_jax.from_pretrained("hf://me/elsewhere")
  assert "--" not in str(caught.value)
