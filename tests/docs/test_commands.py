"""Runs commands of the README and of the documentation, with small settings."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import mae_jax
from tests.helpers.commands import command, write_images
from tests.test_readme import COMMANDS_OF, DOCS, ROOT

# A few steps of a small network; evaluation of a few images.
SMALL = (
  "--config.model.depth=1", "--config.model.width=48",
  "--config.model.mlp_dim=96", "--config.model.decoder_depth=1",
  "--config.model.dtype=float32", "--config.train.length=3 steps",
  "--config.optim.warmup=1 steps", "--config.data.batch_size=16",
  "--config.eval.every=0 steps", "--config.eval.max_train=32",
)  # fmt: skip


def run(words: list[str], cwd) -> str:
  """Runs a command of a page in a directory without a checkout."""
  environ = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, *words[1:]],
    cwd=cwd,
    env=environ,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, (words, done.stderr[-3000:])
  return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
  ("page", "files"),
  [
    (ROOT / "README.md", {"runs", "pictures", "vit_mine_hf"}),
    (
      DOCS / "quickstart" / "your_images.md",
      {"runs", "pictures", "predictions.csv", "report.html",
       "classifier_timm"},
    ),
  ],
  ids=["README", "your_images"],
)  # fmt: skip
def test_the_commands_of_a_page_run_in_order(page, files, tmp_path):
  # The photographs of "your images".
  text = (DOCS / "quickstart" / "your_images.md").read_text()
  (code,) = re.findall(r"```python\n(import pathlib\n.*?)```", text, re.DOTALL)
  run(["python", "-c", code], tmp_path)
  lines = [x for x in COMMANDS_OF[page] if x.startswith("python -m mae_jax ")]
  assert len(lines) >= 4
  for line in lines:
    words = shlex.split(line)
    small = SMALL if "train" in words else ()
    run([*words, *small], tmp_path)
  assert files <= {path.name for path in tmp_path.iterdir()}
  assert (tmp_path / "runs" / "samples.png").exists()


# What the commands of guides name, and small ones in a test's directory.
STAND_INS = {
  "runs/vit_l": "digits",
  "runs/finetune_vit_l": "{tmp}/classifier",
  "/data/photos": "{tmp}/photos",
  "cat.jpg": "{tmp}/photos/cat.jpg",
  "torn.jpg": "{tmp}/torn.png",
  "torn_mask.png": "{tmp}/torn_mask.png",
  # The digits' network has 4 blocks and 16 patches.
  "12": "4",
  "6,12,18,24": "1,2,3,4",
  "0.75,0.85,0.95": "0.75,0.85,0.9",
}
TOOLS = re.compile(
  r"python -m mae_jax (features|predict|attention|neighbors|reconstruct|export|"
  r"convert) "
)
# Public weights, another network, and TensorFlow.
ELSEWHERE = ("hf://", ".pth", "runs/photos", "savedmodel")
GUIDES = sorted(
  {
    line
    for page, lines in COMMANDS_OF.items()
    for line in lines
    if page.parent.name == "guides"
    and TOOLS.match(line)
    and not any(each in line for each in ELSEWHERE)
  }
)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
  """Makes the files of STAND_INS; returns their directory."""
  root = tmp_path_factory.mktemp("guides")
  write_images(root / "photos", ["cat.jpg", "a.jpg", "b.jpg"])
  Image.new("RGB", (16, 16), "red").save(root / "torn.png")
  mask = np.zeros((16, 16), np.uint8)
  mask[:4, :8] = 255
  Image.fromarray(mask).save(root / "torn_mask.png")
  model = mae_jax.create_model(
    "vit_ti8", image_size=16, width=32, depth=1, heads=2, num_classes=3
  )
  model.save_pretrained(root / "classifier", format="jax")
  return root


@pytest.mark.slow
@pytest.mark.parametrize("line", GUIDES)
def test_the_commands_of_guides_run(line, stand_ins, tmp_path):
  words = []
  for word in shlex.split(line)[3:]:
    flag, equal, value = word.rpartition("=")
    if value in STAND_INS:
      value = STAND_INS[value].format(tmp=stand_ins)
    elif flag == "--out" or (not equal and words and words[0] == "convert"):
      value = str(tmp_path / value)  # what is written
    words.append(flag + equal + value)
  done = command(*words)
  assert done.returncode == 0, (words, done.stderr[-3000:])
  assert list(tmp_path.iterdir())
