"""Runs the Python of the README and of the documentation.

The blocks of a page run in order, in one namespace and an empty directory that
has `photos`, a folder of small images, and `runs/digits`, a short run. A block
behind `<!-- not run: REASON -->` needs a network, or files that a test does not
have: its syntax and its names are checked. Notebooks run in test_build.py.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import mae_jax
from tests.helpers.params import slow
from tests.test_readme import PAGES, ROOT

_BLOCK = re.compile(
  r"^(<!-- not run: .* -->\n)?```python\n(.*?)^```", re.MULTILINE | re.DOTALL
)
BLOCKS = {
  str(page.relative_to(ROOT)): blocks
  for page in PAGES
  if (blocks := _BLOCK.findall(page.read_text()))
}
# Pages that train.
LONG = {
  "README.md", "docs/guides/evaluate.md", "docs/guides/finetune_probe.md",
  "docs/guides/pretraining.md", "docs/quickstart/your_images.md",
  "docs/reference/metrics.md",
}  # fmt: skip
RUN = {name: [code for skip, code in blocks if not skip]
       for name, blocks in BLOCKS.items()}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> pathlib.Path:
  """A folder of eight small color images, in two classes."""
  root = tmp_path_factory.mktemp("images") / "photos"
  for number in range(8):
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    path = root / "ab"[number % 2] / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize((100, 100)).save(path)
  return root


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
  """A run of two steps."""
  path = tmp_path_factory.mktemp("runs") / "digits"
  changes = {
    "train.log_every": "1 steps",
    "optim.warmup": "1 steps",
    "eval.max_train": 100,
    "eval.num_trials": 1,
    "eval.images": 0,
  }
  mae_jax.train("digits:steps=2", path, changes=changes, progress=False)
  return path


# Warnings are for users who read them.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
  "name", [slow(x) if x in LONG else x for x, code in RUN.items() if code]
)
def test_the_blocks_of_a_page_run(name, photos, tmp_path, monkeypatch, request):
  shutil.copytree(photos, tmp_path / "photos")
  if any("runs/digits" in code for code in RUN[name]):
    (tmp_path / "runs").mkdir()
    shutil.copytree(
      request.getfixturevalue("workdir"), tmp_path / "runs" / "digits"
    )
  monkeypatch.chdir(tmp_path)
  namespace: dict[str, object] = {"__name__": "__main__"}
  for code in RUN[name]:
    exec(compile(code, name, "exec"), namespace)


@pytest.mark.slow
def test_every_metric_of_a_run_is_documented(workdir):
  page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
  for name in mae_jax.Run(workdir).metrics:
    shown = re.sub(r"_(5|all)(_std)?/.*", r"_N\2/F", name)
    assert f"`{shown}`" in page, name


@pytest.mark.parametrize("name", BLOCKS)
def test_names_exist(name):
  for _, code in BLOCKS[name]:
    for node in ast.walk(ast.parse(code)):
      if isinstance(node, ast.ImportFrom) and "mae_jax" in (node.module or ""):
        module = importlib.import_module(node.module)
        for each in node.names:
          assert hasattr(module, each.name) or importlib.import_module(
            f"{node.module}.{each.name}"
          )
      if isinstance(node, ast.Call):
        _check_call(node)


def _check_call(node: ast.Call) -> None:
  """Checks the arguments of `mae_jax.NAME(...)` and of a model's methods."""
  function = node.func
  if not isinstance(function, ast.Attribute):
    return
  owner = ast.unparse(function.value)
  if owner not in ("mae_jax", "model"):
    return
  found = getattr(mae_jax.Model if owner == "model" else mae_jax, function.attr)
  if found is mae_jax.train:
    found = importlib.import_module("mae_jax.api.runs").train
  own = [None] if owner == "model" else []
  words = {each.arg: None for each in node.keywords if each.arg}
  inspect.signature(found).bind(*own, *node.args, **words)


def test_blocks_that_are_not_run_say_why():
  for blocks in BLOCKS.values():
    for skip, _ in blocks:
      assert not skip or re.search("needs|has", skip)
