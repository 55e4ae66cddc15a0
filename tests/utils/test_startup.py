"""Tests of the start: its timer, and that TensorFlow is imported late."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest

from mae_jax.train import metrics
from mae_jax.utils import startup
from tests import test_imports
from tests.helpers import tiny
from tests.helpers.params import slow
from tests.tools import test_export

# Runs a module, and fails if it has imported TensorFlow.
WITHOUT = """
import runpy, sys
del sys.argv[0]
try:
  runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
  assert "tensorflow" not in sys.modules, "Traceback"
"""


def run(command, *args):
  program = ["mae_jax.main"] if command == "main" else ["mae_jax", command]
  return subprocess.run(
    [sys.executable, "-c", WITHOUT, *program, *map(str, args)],
    cwd=test_imports.PACKAGE.parent,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


MAIN = ("main", "--config=configs/digits.py")
EVALUATE = ("main", "--config=configs/digits_finetune.py")
EVALUATE += ("--config.task=evaluate",)


@pytest.mark.parametrize(
  ("args", "complaint"),
  [
    ((*MAIN, "--config.task=pretrian"), "'pretrian' is not known"),
    slow((*MAIN, "--config.train.compile_cache=setup.py"), "cannot be made"),
    slow((*MAIN, "--config.mesh.fsdp=many"), "write a whole number"),
    slow(
      (*EVALUATE, "--config.eval.measure=x"), "eval.measure='x' is not known"
    ),
    slow(EVALUATE, "init_from is empty"),
    slow((*EVALUATE, "--config.init_from=/nowhere"), "/nowhere"),
    slow(("plan", MAIN[1], "--topology=v9"), "v9"),
    slow(("convert", "--to=jax", "/nowhere.pth", "out"), "/nowhere.pth"),
    slow(
      ("features", "--checkpoint=/nowhere", "--images=.", "--out=x.npz"), "/no"
    ),
    (("predict", "--checkpoint=/nowhere", "--images=.", "--out=x.csv"), "/no"),
    slow(("export", "--checkpoint=/nowhere", "--out=x"), "/nowhere"),
  ],
)
def test_a_mistake_does_not_wait_for_tensorflow(tmp_path, args, complaint):
  workdir = [f"--workdir={tmp_path}"] if args[0] == "main" else []
  done = run(*args, *workdir)
  assert done.returncode == 1, done.stdout
  assert "Traceback" not in done.stderr
  assert complaint in done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("tool", [slow("convert"), slow("export"), "features"])
def test_help_does_not_wait_for_tensorflow(tool):
  done = run(tool, "--help")
  assert done.returncode == 0, done.stderr
  assert "usage" in done.stdout


@pytest.mark.slow
def test_stablehlo_is_exported_without_tensorflow(tmp_path):
  built, params = test_export.random_classifier(tiny.config(task="finetune"))
  workdir = test_export.save(built.config, tmp_path / "run", params)
  done = run("export", f"--checkpoint={workdir}", f"--out={tmp_path / 'out'}")
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "out" / "program.bin").exists()


def test_only_some_packages_import_tensorflow():
  """Follows imports at the top level of modules, directly or indirectly."""
  needed = {"mae_jax.data.tf_setup"}
  found = {
    name: top_level(name, path) for name, path in test_imports.modules().items()
  }
  while True:
    # A module imports the packages that contain it.
    more = {
      name
      for name, names in found.items()
      if any(x == y or x.startswith(f"{y}.") for x in names for y in needed)
      or any(name.startswith(f"{x}.") for x in needed)
    } - needed
    if not more:
      break
    needed |= more
  parts = {name.split(".")[1] for name in needed}
  assert parts == {"data", "evals", "train", "tools"}
  assert not needed & {"mae_jax.evals.load_model", "mae_jax.train.init_from"}
  assert {x for x in needed if x.startswith("mae_jax.tools.export")} == {
    "mae_jax.tools.export.savedmodel"
  }


def top_level(name, path):
  """Lists the imports at the top level of a module."""
  tree = ast.parse(path.read_text())
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
      isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ):
      node.body = [ast.Pass()]
  return test_imports.imports(name, ast.unparse(tree))


@pytest.mark.slow
def test_importing_the_tasks_imports_no_optional_package():
  code = (
    "import sys, mae_jax.train.tasks.label_efficiency\n"
    "import mae_jax.train.tasks.pretrain\n"
    "print(sorted({x.partition('.')[0] for x in sys.modules}))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=test_imports.PACKAGE.parent,
    capture_output=True,
    text=True,
    timeout=300,
    check=True,
  )
  loaded = ast.literal_eval(done.stdout.splitlines()[-1])
  assert {"jax", "tensorflow", "tensorboardX"} <= set(loaded)
  assert not {"torch", "keras", "sklearn", "transformers"} & set(loaded)


def test_a_hidden_package_can_be_imported_later(monkeypatch):
  monkeypatch.delitem(sys.modules, "colorsys", raising=False)
  with startup.hide_packages("colorsys", "ast"):
    with pytest.raises(ImportError):
      import colorsys
    assert sys.modules["ast"] is ast  # imported before
  import colorsys

  assert colorsys.rgb_to_hsv(0, 0, 0) == (0, 0, 0)


def test_the_parts_of_a_start_add_up():
  startup.start_timer()
  for part in ("data", "state", "data"):
    startup.mark(part)
  found = startup.first_step()
  total = found.pop("start_seconds")
  assert list(found) == ["start_imports", "start_data", "start_state"]
  assert sum(found.values()) == pytest.approx(total)
  # This process has imported JAX, and has run for less than a day.
  assert 0.3 < found["start_imports"] < 86400
  assert startup.first_step() == {}  # a process starts once
  startup.mark("data")
  assert startup.first_step() == {}


def test_a_start_is_described_in_one_line():
  seconds = {"start_seconds": 3.14, "start_imports": 3.0, "start_data": 0.04}
  assert startup.describe(seconds | {"start_compile": 0.1}) == (
    "first step after 3.1 s: importing 3.0, compiling and a step 0.1"
  )
  assert set(seconds) < set(metrics.TIMING)
