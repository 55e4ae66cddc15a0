"""Tests of names that users of timm and transformers try."""

from __future__ import annotations

import pytest

import mae_jax
from mae_jax.api import hints


@pytest.fixture(scope="module")
def digits():
  return mae_jax.from_pretrained("digits")


@pytest.mark.parametrize("name", sorted(hints.MODEL))
def test_attributes(digits, name):
  assert not hasattr(digits, name)
  with pytest.raises(AttributeError, match=f"{name!r}: "):
    getattr(digits, name)


def test_a_model_is_not_called(digits):
  with pytest.raises(mae_jax.ConfigError, match=r"use model\.features"):
    digits(None)
  with pytest.raises(AttributeError, match=r"attribute 'nothing'$"):
    digits.nothing  # noqa: B018


def test_settings_in_sections(digits):
  with pytest.raises(AttributeError, match=r"use config\.data\.image_size$"):
    digits.config.image_size  # noqa: B018
  with pytest.raises(AttributeError, match=r"attribute 'nothing'$"):
    digits.config.nothing  # noqa: B018


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: mae_jax.create_model("vit_b16", pretrained=True),
      r"pretrained is no argument.* from_pretrained\(",
    ),
    (lambda: mae_jax.create_model("vit_b16", img_size=32), "use image_size"),
    (
      lambda: mae_jax.create_model("vit_base_patch16_224.mae"),
      "hf://timm/vit_base_patch16_224.mae",
    ),
    (
      lambda: mae_jax.from_pretrained("facebook/vit-mae-base"),
      "use hf://facebook/vit-mae-base",
    ),
    (
      lambda: mae_jax.from_pretrained("https://huggingface.co/org/name"),
      "use hf://org/name",
    ),
    (lambda: mae_jax.from_pretrained("vit_b16"), r'create_model\("vit_b16"\)'),
    (lambda: mae_jax.from_pretrained("digit"), "did you mean 'digits'"),
    (lambda: mae_jax.from_pretrained("digits", device="cpu"), "use mesh"),
    (lambda: mae_jax.list_models(filter="vit*"), "use pattern"),
  ],
)
def test_arguments(call, message):
  with pytest.raises(mae_jax.ConfigError, match=message):
    call()


def test_other_unknown_arguments_are_pythons():
  with pytest.raises(TypeError, match="unexpected keyword argument"):
    mae_jax.create_model("vit_b16", color="red")


def test_formats_of_errors(tmp_path):
  size = (16, 24)  # a BEiT would interpolate its positions
  model = mae_jax.create_model(
    "vit_ti8", image_size=size, width=32, depth=1, heads=4, num_classes=2
  )
  with pytest.raises(mae_jax.ConfigError, match="format=timm") as caught:
    model.save_pretrained(tmp_path / "a")
  assert "--" not in str(caught.value)
