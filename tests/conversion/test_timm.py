"""timm's own loader reads the folders that we write, and we read timm's."""

from __future__ import annotations

import json
import pathlib
import warnings
from typing import Any

import numpy as np
import pytest
import torch

with warnings.catch_warnings():
  warnings.simplefilter("ignore")  # timm imports parts that PyTorch deprecates
  import timm
  import timm.data

from PIL import Image

from mae_jax import checkpoints
from mae_jax.conversion import (
  export_weights,
  load,
  model_card,
  model_info,
  provenance,
)
from mae_jax.conversion import timm as timm_format
from mae_jax.data import prepare
from mae_jax.utils.errors import ConfigError
from tests.conversion import test_outputs, test_round_trips
from tests.helpers import model_outputs, sample_checkpoints
from tests.helpers.params import slow


def loaded(folder: pathlib.Path, **changes: Any) -> torch.nn.Module:
  model = timm.create_model(f"local-dir:{folder}", pretrained=True, **changes)
  return model.eval()


@torch.no_grad()
def outputs(model: torch.nn.Module, kind: str, pixels: torch.Tensor):
  if kind in test_outputs.CLASSIFIERS:
    return model(pixels).numpy()
  return model.forward_features(pixels).numpy()


@pytest.mark.parametrize(
  ("kind", "model"),
  [
    *((kind, {}) for kind in ("encoder", "mean", "cls", "probe", "mae")),
    slow("mean", {"activation": "quick_gelu"}),
    slow("cls", {"activation": "gelu_tanh"}),
    slow("encoder", {"activation": "relu"}),
    slow("encoder", {"activation": "silu"}),
  ],
)
def test_timm_loads_a_folder(kind: str, model: dict, tmp_path: pathlib.Path):
  start = sample_checkpoints.save(
    tmp_path / "start", kind, model=sample_checkpoints.MODEL | model
  )
  out = test_round_trips.run(start, tmp_path / "out", "timm")
  x, pixels = model_outputs.images()
  theirs = loaded(out)
  classifier = kind in test_outputs.CLASSIFIERS
  read = model_outputs.logits if classifier else model_outputs.tokens
  test_outputs.assert_close(kind, read(start, x), outputs(theirs, kind, pixels))
  # And so do we.
  np.testing.assert_allclose(read(out, x), read(start, x), rtol=0, atol=1e-5)
  cfg = theirs.pretrained_cfg
  assert theirs.num_classes == (5 if classifier else 0)
  assert cfg["input_size"] == (3, 24, 24)
  assert tuple(cfg["mean"]) == sample_checkpoints.DATA["mean"]
  if classifier:
    assert tuple(cfg["label_names"]) == sample_checkpoints.CLASSES
    # Another number of classes takes a new head.
    assert loaded(out, num_classes=2).head.weight.shape == (2, 48)


def test_a_size_without_a_name_is_named_as_the_nearest(tmp_path: pathlib.Path):
  start = sample_checkpoints.save(tmp_path / "start", "encoder")
  out = test_round_trips.run(start, tmp_path / "out", "timm")
  config = json.loads((out / "config.json").read_text())
  assert config["architecture"] == "vit_tiny_patch16_224"
  theirs = loaded(out)
  assert theirs.embed_dim == config["model_args"]["embed_dim"] == 48
  assert len(theirs.blocks) == config["model_args"]["depth"] == 2
  code = timm_format.create_model(load.open_weights(start).info, "FILE")
  assert code.startswith('timm.create_model("vit_tiny_patch16_224", patch_size')


@pytest.mark.parametrize(
  ("kind", "model", "data"),
  [
    ("mean", {"activation": "quick_gelu"}, {}),
    ("cls", {}, {"eval_fit": "squash", "eval_resample": "lanczos"}),
    ("encoder", {}, {"image_size": (18, 30), "mean": (0.4,), "std": (0.2,)}),
  ],
)
def test_the_printed_line_builds_the_same_network(
  kind, model, data, tmp_path: pathlib.Path
):
  """Compares with the folder, whose config.json says how to prepare images."""
  start = sample_checkpoints.save(
    tmp_path / "start",
    kind,
    model=sample_checkpoints.MODEL | model,
    data=sample_checkpoints.DATA | data,
  )
  file = test_round_trips.run(start, tmp_path / "x.safetensors", "timm")
  folder = test_round_trips.run(start, tmp_path / "out", "timm")
  line = timm_format.create_model(load.open_weights(start).info, str(file))
  built, wanted = eval(line).eval(), loaded(folder)
  for name, value in wanted.state_dict().items():
    torch.testing.assert_close(built.state_dict()[name], value, rtol=0, atol=0)
  pixels = torch.randn(2, 3, *data.get("image_size", (24, 24)))
  torch.testing.assert_close(built(pixels), wanted(pixels))
  cfg, as_folder = (
    timm.data.resolve_model_data_config(model) | {"input_size": None}
    for model in (built, wanted)
  )
  assert cfg == as_folder
  mean = data.get("mean", sample_checkpoints.DATA["mean"])
  assert tuple(cfg["mean"]) == mean * (3 // len(mean))
  size = built.pretrained_cfg["input_size"]
  assert tuple(size) == (3, *data.get("image_size", (24, 24)))
  assert cfg["interpolation"] == data.get("eval_resample", "bicubic")


def test_the_license_that_timm_states_is_kept(tmp_path: pathlib.Path):
  start = sample_checkpoints.save(tmp_path / "start", "encoder")
  out = test_round_trips.run(start, tmp_path / "out", "timm")
  without_metadata(out)
  file = out / "config.json"
  config = json.loads(file.read_text())
  config["pretrained_cfg"] |= {"license": "cc-by-nc-4.0", "hf_hub_id": "a/b"}
  file.write_text(json.dumps(config))
  run = load.open_weights(out).run
  wanted = {"source": "hf://a/b", "license": "cc-by-nc-4.0"}
  assert provenance.trace(run) == wanted
  back = test_round_trips.run(out, tmp_path / "back", "timm")
  assert loaded(back).pretrained_cfg["license"] == "cc-by-nc-4.0"
  card = export_weights.make_card(load.open_weights(back), "timm")
  assert "license: cc-by-nc-4.0" in model_card.write(card)


@pytest.mark.parametrize("channels", [1, 2])
def test_rectangles_of_other_channels(channels: int, tmp_path: pathlib.Path):
  data = sample_checkpoints.DATA | {
    "image_size": (18, 32),
    "channels": channels,
    "mean": (0.4,),
    "std": (0.2,),
  }
  model = sample_checkpoints.MODEL | {"patch_size": (6, 8)}
  start = sample_checkpoints.save(
    tmp_path / "start", "mean", data=data, model=model
  )
  out = test_round_trips.run(start, tmp_path / "out", "timm")
  random = np.random.default_rng(0)
  x = random.normal(size=(3, 18, 32, channels)).astype(np.float32)
  pixels = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
  test_outputs.assert_close(
    "mean", model_outputs.logits(start, x), outputs(loaded(out), "mean", pixels)
  )


def test_a_named_size(tmp_path: pathlib.Path):
  named = {"width": None, "depth": 1, "heads": None, "mlp_dim": None}
  data = sample_checkpoints.DATA | {"image_size": (32, 32)}
  model = sample_checkpoints.MODEL | named | {"variant": "Ti/16"}
  start = sample_checkpoints.save(
    tmp_path / "start", "encoder", data=data, model=model
  )
  out = test_round_trips.run(start, tmp_path / "out", "timm")
  content = json.loads((out / "config.json").read_text())
  assert content["architecture"] == "vit_tiny_patch16_224"
  assert content["model_args"]["embed_dim"] == 192
  assert loaded(out).num_features == 192
  found = load.open_weights(out, out).info
  full = model_info.ModelInfo(
    kind="encoder",
    **{"width": 192, "depth": 12, "heads": 3, "mlp_dim": 768},
    patch_size=(16, 16),
    channels=3,
    image_size=(224, 224),
    mean=(0.5,),
    std=(0.5,),
  )
  assert found.heads == 3
  assert timm_format.hub_config(full)["architecture"] == "vit_tiny_patch16_224"


@pytest.mark.parametrize("kind", ["encoder", "mean", "cls"])
def test_round_trips_are_exact(kind: str, tmp_path: pathlib.Path):
  start = sample_checkpoints.save(tmp_path / "start", kind)
  out = test_round_trips.run(start, tmp_path / "out", "timm")
  end = test_round_trips.run(out, tmp_path / "end", "jax")
  test_round_trips.assert_same(
    test_round_trips.arrays(end), test_round_trips.arrays(start)
  )
  before, after = map(checkpoints.read_metadata, (start, end))
  assert after.config == before.config
  assert after.class_names == before.class_names
  again = test_round_trips.run(end, tmp_path / "again", "timm")
  file = test_round_trips.run(end, tmp_path / "x.safetensors", "timm")
  texts = [(path / "config.json").read_text() for path in (out, again)]
  assert texts[0] == texts[1]
  for path in (again, file):
    test_round_trips.assert_same(
      test_round_trips.tensors(path), test_round_trips.tensors(out)
    )


def without_metadata(folder: pathlib.Path) -> None:
  """Removes this project's metadata, as from a folder that timm wrote."""
  from safetensors.torch import load_file, save_file

  file = folder / "model.safetensors"
  save_file(load_file(file), file)


def test_folders_that_timm_writes(tmp_path: pathlib.Path):
  """Their config.json states what no tensor shows."""
  model = timm.create_model(
    "vit_tiny_patch16_224",
    **{"img_size": 24, "patch_size": 6, "embed_dim": 48, "depth": 2},
    **{"num_heads": 4, "mlp_ratio": 2.0, "num_classes": 5},
    global_pool="avg",
    act_layer="quick_gelu",
  ).eval()
  out = tmp_path / "theirs"
  timm.models.save_for_hf(model, out, safe_serialization=True)
  x, pixels = model_outputs.images()
  found = load.open_weights(out, out).info
  assert (found.heads, found.activation) == (4, "quick_gelu")
  np.testing.assert_allclose(
    model_outputs.logits(out, x),
    outputs(model, "mean", pixels),
    rtol=0,
    atol=1e-5,
  )


@pytest.mark.parametrize("size", [(24, 24), (32, 32)])
@pytest.mark.parametrize("crop", [0.875, 0.9, 0.95, 1.0, 24 / 28])
@pytest.mark.parametrize(
  ("how", "resample"),
  [("crop", "bicubic"), ("crop", "bilinear"), ("squash", "lanczos")],
)
def test_the_same_pixels(size, crop, how, resample, tmp_path: pathlib.Path):
  data = sample_checkpoints.DATA | {
    "image_size": size,
    "eval_crop": crop,
    "eval_fit": how,
    "eval_resample": resample,
  }
  model = sample_checkpoints.MODEL | {"patch_size": (8, 8)}
  start = sample_checkpoints.save(
    tmp_path / "start", "encoder", data=data, model=model
  )
  out = test_round_trips.run(start, tmp_path / "out", "timm")
  cfg = timm.data.resolve_model_data_config(loaded(out))
  transform = timm.data.create_transform(**cfg, is_training=False)
  transform.transforms = transform.transforms[:-2]  # to float, normalize
  settings = checkpoints.read_metadata(start).config.data
  for shape in ((300, 100, 3), (100, 300, 3), (97, 61, 3), (*size, 3)):
    random = np.random.default_rng(sum(shape))
    image = random.integers(0, 256, shape, np.uint8)
    theirs = np.asarray(transform(Image.fromarray(image)))
    np.testing.assert_array_equal(theirs, prepare.fit(image, settings))
  # Without our metadata, the same preparation is read back.
  without_metadata(out)
  info = load.open_weights(out, out).info
  assert (info.eval_fit, info.eval_resample) == (how, resample)
  if how == "crop":
    cover = [round(side / settings.eval_crop) for side in size]
    assert [round(side / info.eval_crop) for side in size] == cover


@pytest.mark.parametrize(
  ("changes", "wanted", "note"),
  [
    ({}, ("crop", "bicubic", 0.9), ""),
    ({"crop_mode": None, "interpolation": None}, ("crop", "bicubic", 0.9), ""),
    ({"crop_mode": "squash", "crop_pct": 1.0}, ("squash", "bicubic", 1.0), ""),
    (
      {"crop_mode": "squash"},
      ("squash", "bicubic", 0.9),
      "crops images after it changed their aspect, which this project does not",
    ),
    (
      {"crop_mode": "border"},
      ("squash", "bicubic", 0.9),
      "pads images to keep their aspect",
    ),
    (
      {"interpolation": "random"},
      ("crop", "bicubic", 0.9),
      "interpolation=ran",
    ),
    ({"crop_pct": 0.85}, ("crop", "bicubic", 0.85), ""),
  ],
)
def test_how_timm_prepares(changes, wanted, note, tmp_path: pathlib.Path):
  start = sample_checkpoints.save(tmp_path / "start", "cls")
  out = test_round_trips.run(start, tmp_path / "out", "timm")
  without_metadata(out)
  file = out / "config.json"
  content = json.loads(file.read_text())
  content["pretrained_cfg"] |= {"crop_pct": 0.9} | changes
  file.write_text(json.dumps(content))
  found = load.open_weights(out, out)
  info = found.info
  # timm resizes to 26 pixels, 24 / 0.9 rounded down; we would to 27.
  keep = 24 / 26 if wanted[::2] == ("crop", 0.9) else wanted[2]
  assert (info.eval_fit, info.eval_resample, info.eval_crop) == (
    *wanted[:2],
    keep,
  )
  assert [text for text in found.notes if note in text] or not note
  assert len(found.notes) == bool(note)


def test_names_of_files_and_folders(tmp_path: pathlib.Path):
  start = sample_checkpoints.save(tmp_path / "start", "encoder")
  with pytest.raises(ConfigError, match=r"does not end in .safetensors"):
    test_round_trips.run(start, tmp_path / "x.pth", "timm")
  out = test_round_trips.run(start, tmp_path / "vit.v1", "timm")
  assert sorted(x.name for x in out.iterdir()) == [
    "README.md",
    "config.json",
    "model.safetensors",
  ]
