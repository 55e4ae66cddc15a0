"""transformers prepares the pixels that this project does, and back."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from mae_jax import checkpoints
from mae_jax.config import DataConfig
from mae_jax.conversion import load, model_info, preprocessing
from mae_jax.data import prepare
from tests.conversion import test_round_trips
from tests.helpers import sample_checkpoints


def info(**changes: Any) -> model_info.ModelInfo:
  fields: dict[str, Any] = {
    **{"kind": "encoder", "width": 8, "depth": 1, "mlp_dim": 8},
    **{"patch_size": (8, 8), "channels": 3, "image_size": (224, 224)},
    **{"mean": (0.0,), "std": (1.0,)},
  }
  return model_info.ModelInfo(**(fields | changes))


def settings(found: model_info.ModelInfo) -> DataConfig:
  return sample_checkpoints.config(
    "encoder",
    data=sample_checkpoints.DATA
    | {
      name: getattr(found, name)
      for name in ("image_size", "eval_fit", "eval_crop", "eval_resample")
    },
    model=sample_checkpoints.MODEL | {"patch_size": (8, 8)},
  ).data


def processed(
  found: model_info.ModelInfo, image: np.ndarray, backend: str, folder
) -> np.ndarray:
  """Returns transformers' pixels [H, W, C] in 0 to 255, not normalized."""
  content = preprocessing.to_transformers(found)
  content |= {"do_rescale": False, "do_normalize": False}
  (folder / "preprocessor_config.json").write_text(json.dumps(content))
  (folder / "config.json").write_text('{"model_type": "vit"}')
  processor = transformers.AutoImageProcessor.from_pretrained(
    folder, backend=backend
  )
  assert type(processor).__name__.endswith("Pil") == (backend == "pil")
  pixels = processor(images=Image.fromarray(image), return_tensors="np")
  return pixels["pixel_values"][0].transpose(1, 2, 0).astype(np.float32)


LONG = preprocessing._LONG_NOTE


def photo(height: int, width: int) -> np.ndarray:
  """Returns a smooth image with some texture."""
  random = np.random.default_rng(height)
  coarse = random.integers(0, 256, (9, 9, 3), np.uint8)
  smooth = np.asarray(Image.fromarray(coarse).resize((width, height)))
  noise = random.integers(-20, 20, smooth.shape)
  return np.clip(smooth + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("resample", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_the_same_pixels(fit: str, resample: str, tmp_path: pathlib.Path):
  """Compares pixels: equal with Pillow, rounded with torchvision."""
  found = info(eval_fit=fit, eval_resample=resample)
  notes = preprocessing.transformers_notes(found)
  assert notes == ([] if fit == "squash" else [LONG])
  for size in ((300, 100), (100, 300), (512, 384), (100, 100)):
    image = photo(*size)
    ours = prepare.fit(image, settings(found)).astype(np.float32)
    theirs = processed(found, image, "pil", tmp_path)
    np.testing.assert_array_equal(theirs, ours)
    fast = processed(found, image, "torchvision", tmp_path)
    difference = np.abs(fast - ours)
    print(f"{size}: {difference.max():g} levels at {(difference > 0).mean():g}")
    assert difference.max() <= 16
    assert difference.mean() < 0.3


@pytest.mark.parametrize("edge", range(224, 240))
def test_offsets_of_the_crop(edge: int, tmp_path: pathlib.Path):
  """A note says that transformers rounds half a pixel down."""
  found = info(eval_crop=224 / edge)
  image = photo(edge, edge)
  ours = prepare.fit(image, settings(found)).astype(np.float32)
  theirs = processed(found, image, "pil", tmp_path)
  notes = preprocessing.transformers_notes(found)
  assert np.array_equal(theirs, ours) == (notes == [LONG])
  if notes != [LONG]:
    np.testing.assert_array_equal(theirs[1:, 1:], ours[:-1, :-1])
    assert "its crop lies one pixel before ours" in notes[0]


def test_the_longer_side_may_be_one_pixel_off(tmp_path: pathlib.Path):
  found = info()
  edge = round(found.image_size[0] / found.eval_crop)
  image = photo(edge, edge + 3)
  margin = edge + 3 - found.image_size[1]
  ours = prepare.fit(image, settings(found)).astype(np.float32)
  theirs = processed(found, image, "pil", tmp_path)
  same = np.array_equal(theirs, ours)
  assert same == (margin % 4 != 3)
  assert preprocessing.transformers_notes(found) == [LONG]


def test_a_rectangle_cannot_be_covered():
  found = info(image_size=(64, 128))
  (note,) = preprocessing.transformers_notes(found)
  assert "its shorter side becomes 146 pixels" in note
  assert preprocessing.transformers_notes(info(eval_fit="squash")) == []


THEIRS = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.mark.parametrize(
  ("content", "wanted", "note"),
  [
    # As facebook/vit-mae-base and google/vit-base-patch16-224 have it.
    (
      {"feature_extractor_type": "ViTFeatureExtractor", "size": 24},
      ("squash", "bilinear", 1.0),
      "",
    ),
    (
      {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 24, "width": 24},
        "resample": 3,
      },
      ("squash", "bicubic", 1.0),
      "",
    ),
    ({}, ("squash", "bilinear", 1.0), ""),
    (
      {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 27},
        "crop_size": {"height": 24, "width": 24},
        "do_center_crop": True,
        "resample": 1,
      },
      ("crop", "lanczos", 24 / 27),
      "",
    ),
    (
      {"image_processor_type": "CLIPImageProcessor"},
      ("crop", "bicubic", 0.875),
      "",
    ),
    (
      {"size": {"shortest_edge": 24}, "do_center_crop": False},
      ("crop", "bilinear", 1.0),
      "does not crop images that are not square, which this project does not",
    ),
    (
      {"size": {"height": 27, "width": 27}, "do_center_crop": True},
      ("squash", "bilinear", 1.0),
      "crops images after it changed their aspect",
    ),
    ({"resample": 0}, ("squash", "bicubic", 1.0), "with Pillow's filter 0"),
    ({"do_resize": False}, ("squash", "bilinear", 1.0), "does not resize"),
  ],
)
def test_what_transformers_states(content, wanted, note, tmp_path):
  start = sample_checkpoints.save(tmp_path / "start", "encoder")
  out = test_round_trips.run(start, tmp_path / "out", "transformers")
  file = out / "model.safetensors"
  save_file(load_file(file), file)  # without our metadata
  path = out / "preprocessor_config.json"
  path.write_text(json.dumps(THEIRS | content))
  found = load.open_weights(out, out)
  data = found.run.config.data
  assert (data.eval_fit, data.eval_resample, data.eval_crop) == wanted
  assert data.mean == (0.5,) * 3
  assert len(found.notes) == bool(note)
  assert note in "".join(found.notes)


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_round_trips_are_exact(fit: str, tmp_path: pathlib.Path):
  data = {"eval_fit": fit, "eval_resample": "lanczos", "eval_crop": 0.77}
  start = sample_checkpoints.save(
    tmp_path / "start", "mae", data=sample_checkpoints.DATA | data
  )
  out = test_round_trips.run(start, tmp_path / "out", "transformers")
  end = test_round_trips.run(out, tmp_path / "end", "jax")
  before, after = map(checkpoints.read_metadata, (start, end))
  assert after.config == before.config
  # Without our metadata, images are resized to the same size.
  file = out / "model.safetensors"
  save_file(load_file(file), file)
  read = load.open_weights(out, out).info
  assert (read.eval_fit, read.eval_resample) == (fit, "lanczos")
  if fit == "crop":
    assert preprocessing.covered_size(read) == (31, 31)
