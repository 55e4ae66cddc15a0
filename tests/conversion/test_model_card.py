"""Model cards state what the network is, and under which license."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from mae_jax.config import DataConfig
from mae_jax.conversion import export_weights, load, model_card
from mae_jax.data import image_files, prepare
from mae_jax.data.image_headers import Reading
from mae_jax.utils.errors import ConfigError
from tests.conversion import test_round_trips
from tests.helpers import sample_checkpoints

HUB = {"source": "hf://lab/vit@0123", "license": "cc-by-nc-4.0"}


def card(
  tmp_path: pathlib.Path, kind: str, to: str, origin: Any = None, **fields: Any
) -> tuple[dict[str, Any], str]:
  """Returns the metadata and the text of a network's card."""
  start = sample_checkpoints.save(tmp_path / "start", kind)
  weights = load.open_weights(start)
  made = export_weights.make_card(weights, to, **fields)
  if origin is not None:
    made = dataclasses.replace(made, origin=origin)
  text = model_card.write(made)
  _, front, rest = text.split("---\n", 2)
  return yaml.safe_load(front), rest


@pytest.mark.parametrize(
  ("kind", "to", "task", "code"),
  [
    (
      "mae",
      "transformers",
      "image-feature-extraction",
      'transformers.ViTMAEForPreTraining.from_pretrained(\n  "lab/new"\n)',
    ),
    (
      "encoder",
      "transformers",
      "image-feature-extraction",
      '"lab/new", add_pooling_layer=False',
    ),
    (
      "probe",
      "transformers",
      "image-classification",
      "transformers.ViTForImageClassification",
    ),
    (
      "mean",
      "timm",
      "image-classification",
      'timm.create_model("hf-hub:lab/new", pretrained=True)',
    ),
    ("mae", "timm", "image-feature-extraction", "hf-hub:lab/new"),
  ],
)
def test_each_kind(kind, to, task, code, tmp_path: pathlib.Path):
  front, text = card(tmp_path, kind, to, repo_id="lab/new")
  assert front["library_name"] == to
  assert front["pipeline_tag"] == task
  assert "mae" in front["tags"]
  assert "license" not in front  # trained from scratch: the author decides
  assert "base_model" not in front
  assert "# new\n" in text
  assert code in text
  assert 'mae_jax.from_pretrained("hf://lab/new")' in text
  assert "| images | 24 x 24 pixels, 3 channels |" in text
  assert "| started from | random weights |" in text
  assert "| data | photos |" in text
  assert ("| target | normalized patches |" in text) == (
    (kind, to) == ("mae", "transformers")
  )
  assert ("left out: the decoder" in text) == ((kind, to) == ("mae", "timm"))
  assert ("5 classes, on the" in text) == (kind in ("probe", "mean"))
  for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
    compile(block, "card", "exec")


def test_license_and_source(tmp_path: pathlib.Path):
  front, text = card(tmp_path / "a", "cls", "timm", HUB)
  assert front["license"] == "cc-by-nc-4.0"
  assert front["base_model"] == "lab/vit"
  assert "They derive from hf://lab/vit@0123, which is under `cc-by" in text
  front, text = card(tmp_path / "b", "cls", "timm", HUB, license="mit")
  assert front["license"] == "mit"
  assert "These weights are under the license `mit`" in text
  assert "under `cc-by-nc-4.0`" in text
  unknown = {"source": "", "license": model_card.UNKNOWN}
  front, text = card(tmp_path / "c", "cls", "timm", unknown)
  assert front["license"] == "unknown"
  assert "| started from | weights of unknown origin |" in text
  with pytest.raises(ConfigError, match="state it with license=, such as"):
    model_card.check_license(unknown, None)
  model_card.check_license(unknown, "mit")
  model_card.check_license(HUB, None)
  model_card.check_license({"source": model_card.SCRATCH}, None)


def test_results_and_a_picture(tmp_path: pathlib.Path):
  results = {"accuracy": 0.91234567, "examples": 1000}
  _, text = card(
    tmp_path, "cls", "timm", results=results, picture="attention.png"
  )
  assert "| accuracy | 0.912346 |\n| examples | 1000 |" in text
  assert "![Example](attention.png)" in text
  assert 'mae_jax.from_pretrained("FOLDER")' in text
  assert "local-dir:FOLDER" in text


@pytest.mark.parametrize(
  ("fields", "text"),
  [
    ({"license": "my own\nlicense"}, "cannot be named in a model card"),
    ({"picture": "../x.png"}, "use the name of a file in the folder"),
  ],
)
def test_what_a_card_cannot_name(fields, text, tmp_path: pathlib.Path):
  with pytest.raises(ConfigError, match=text):
    card(tmp_path, "cls", "timm", **fields)


def test_formats_without_folders(tmp_path: pathlib.Path):
  with pytest.raises(ConfigError, match="use timm or transformers"):
    card(tmp_path, "cls", "facebook")


@pytest.mark.parametrize(
  ("text", "wanted"),
  [
    ("---\nlicense: mit\n---\n", "mit"),
    (
      "---\ntags:\n- x\nlicense: 'cc-by-nc-4.0' # theirs\n---\n# x",
      "cc-by-nc-4.0",
    ),
    ("---\r\nlicense: mit\r\n---\r\n", "mit"),
    ("---\ntags: []\n---\nlicense: mit\n", ""),
    ("# No metadata\nlicense: mit", ""),
    ("", ""),
  ],
)
def test_licenses_of_cards(text: str, wanted: str):
  assert model_card.read_license(text) == wanted


def test_settings_of_other_programs_are_not_stated(tmp_path: pathlib.Path):
  """A file without a run has placeholders for the training's settings."""
  from tests.conversion import test_preprocessing

  start = sample_checkpoints.save(tmp_path / "start", "encoder")
  out = test_round_trips.run(start, tmp_path / "out", "timm")
  file = out / "model.safetensors"
  test_preprocessing.save_file(test_preprocessing.load_file(file), file)
  weights = load.open_weights(out, out)
  text = model_card.write(export_weights.make_card(weights, "timm"))
  assert "license: unknown" in text
  assert "batch size" not in text


@pytest.mark.parametrize("kind", ["mae", "probe"])
def test_the_lines_of_a_card_prepare_images(kind, tmp_path, monkeypatch):
  """Runs them as written; the pixels are those of evaluation."""
  _, text = card(tmp_path, kind, "transformers")
  random = np.random.default_rng(0)
  colors = random.integers(0, 256, (30, 50, 4), np.uint8)
  Image.fromarray(colors).save(tmp_path / "image.jpg", format="png")
  monkeypatch.chdir(tmp_path)
  data = load.open_weights(tmp_path / "start").run.config.data
  check_pixels(text, data)
  assert f"| background of transparent pixels | {data.background} |" in text


def check_pixels(text: str, data: DataConfig) -> None:
  """Checks that a card's lines prepare image.jpg here as evaluation does."""
  (code,) = (
    block
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    if "PIL" in block
  )
  found: dict[str, Any] = {}
  exec(code, found)
  image = image_files.read(pathlib.Path("image.jpg"), Reading.of(data))
  wanted = (prepare.fit(image, data) / 255 - data.mean) / data.std
  np.testing.assert_allclose(found["pixels"], wanted, atol=1e-3)


@pytest.mark.parametrize("to", ["timm", "transformers"])
def test_a_folder_says_what_its_config_cannot(to, tmp_path, monkeypatch):
  """The range of values and the background are in README.md, and come back."""
  changes = {
    "source": "folder",
    "channels": 1,
    "mean": (0.4,),
    "std": (0.2,),
    "value_range": (100.0, 4095.0),
    "background": "black",
  }
  before = sample_checkpoints.DATA | changes
  start = sample_checkpoints.save(tmp_path / "start", "encoder", data=before)
  out = tmp_path / "out"
  notes = export_weights.write(load.open_weights(start), to, str(out))
  (note,) = [note for note in notes if "data.value_range=100,4095" in note]
  text = (out / model_card.FILE).read_text()
  assert f"- {note}\n" in text
  assert "| background of transparent pixels | black |" in text
  data = load.open_weights(out).run.config.data
  assert {name: getattr(data, name) for name in changes} == changes
  levels = np.random.default_rng(0).integers(0, 5000, (30, 50), np.uint16)
  monkeypatch.chdir(tmp_path)
  Image.fromarray(levels).save("image.jpg", format="png")
  check_pixels(text, data)
