"""Runs the commands of the README and of "your images", with small settings."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest

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
    (ROOT / "README.md", {"samples.png", "pictures", "vit_mine_hf"}),
    (
      DOCS / "quickstart" / "your_images.md",
      {"samples.png", "pictures", "predictions.csv", "report.html",
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
