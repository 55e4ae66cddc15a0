"""Tests of saving for other libraries, whose own loaders read the files."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image

import mae_jax

TINY = {"width": 32, "depth": 2, "heads": 4}
DECODER = {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 4}


@pytest.fixture(scope="module")
def photo():
  return np.random.default_rng(0).integers(0, 256, (100, 300, 3), np.uint8)


def created(**options):
  options = {"image_size": 32} | TINY | options
  return mae_jax.create_model("vit_ti8", **options)


@pytest.mark.parametrize("format", ["jax", "transformers", "timm", "facebook"])
@pytest.mark.parametrize("classes", [0, 3])
def test_what_is_saved_is_loaded_again(tmp_path, photo, format, classes):
  model = created(
    num_classes=classes, pooling="cls", **({} if classes else DECODER)
  )
  path = tmp_path / {"facebook": "x.pth"}.get(format, "x")
  model.save_pretrained(path, format=format)
  again = mae_jax.from_pretrained(path)
  if format == "timm" and not classes:
    assert again.kind == "encoder"  # timm has no decoders
  else:
    assert again.kind == model.kind
  np.testing.assert_allclose(
    again.features(photo).values, model.features(photo).values, atol=1e-5
  )
  with pytest.raises(mae_jax.ConfigError, match=r"path=.* exists already"):
    model.save_pretrained(path, format=format)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_transformers_predicts_the_same(tmp_path, photo, pooling):
  model = created(num_classes=3, pooling=pooling, class_names=["a", "b", "c"])
  model.save_pretrained(tmp_path / "x", format="transformers")
  theirs = transformers.AutoModelForImageClassification.from_pretrained(
    tmp_path / "x"
  )
  processor = transformers.AutoImageProcessor.from_pretrained(
    tmp_path / "x", backend="pil"
  )
  with torch.no_grad():
    logits = theirs(**processor(photo, return_tensors="pt")).logits
  found = model.predict(photo, top=3)
  wanted = torch.softmax(logits, -1).numpy()[0][found.labels[0]]
  np.testing.assert_allclose(found.probabilities[0], wanted, atol=3e-5, rtol=0)
  assert theirs.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_timm_predicts_the_same(tmp_path, photo):
  model = created(num_classes=3, pooling="mean")
  model.save_pretrained(tmp_path / "x", format="timm")
  theirs = timm.create_model(f"local-dir:{tmp_path / 'x'}", pretrained=True)
  data = timm.data.resolve_data_config(model=theirs)
  transform = timm.data.create_transform(**data)
  pixels = transform(Image.fromarray(photo))[None]
  with torch.no_grad():
    logits = theirs.eval()(pixels)
  found = model.predict(photo, top=3)
  wanted = torch.softmax(logits, -1).numpy()[0][found.labels[0]]
  np.testing.assert_allclose(found.probabilities[0], wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"format": "onnx"}, "format='onnx' is not known"),
    ({"format": "jax", "dtype": "float64"}, "dtype='float64' is not known"),
    ({"format": "facebook"}, r"path=.* does not end in \.pth"),
    ({"format": "transformers"}, "averages its tokens"),
  ],
)
def test_mistakes(tmp_path, options, message):
  model = created(num_classes=3, pooling="mean", image_size=(32, 16))
  with pytest.raises(mae_jax.ConfigError, match=message) as caught:
    model.save_pretrained(tmp_path / "x", **options)
  assert "--" not in str(caught.value)
  assert not list(tmp_path.iterdir())
