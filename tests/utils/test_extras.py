"""Tests that a missing package is one line that names its extra."""

from __future__ import annotations

import importlib
import re
import sys

import pytest

from mae_jax import __main__ as program
from mae_jax.utils import errors, extras
from mae_jax.utils.errors import ConfigError
from tests.packaging.test_wheel import ROOT


@pytest.mark.parametrize(
  ("module", "line"),
  [
    ("tensorflow", "tensorflow is not installed: pip install 'mae_jax[train]'"),
    ("torch.nn", "torch is not installed: pip install 'mae_jax[torch]'"),
    ("skimage", "scikit-image is not installed: pip install 'mae_jax[viz]'"),
    (
      "google.cloud.storage",
      "google-cloud-storage is not installed: pip install 'mae_jax[gcs]'",
    ),
  ],
)
def test_a_missing_package_is_explained(monkeypatch, module: str, line: str):
  for name in (module, module.partition(".")[0]):
    monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(ModuleNotFoundError) as caught:
    importlib.import_module(module)
  if module.startswith("google"):  # the parent is not there either
    caught.value.name = module
  assert errors.explain(caught.value) == line
  assert str(errors.missing_extra(caught.value)) == line


def test_other_errors_are_not_about_extras():
  for error in (
    ModuleNotFoundError("no", name="numpyish"),
    ModuleNotFoundError("no", name="torchish"),
    ImportError("no", name="torch"),
    ValueError("torch"),
    ModuleNotFoundError("no"),
  ):
    assert errors.missing_extra(error) is None
    assert errors.explain(error) is None


def test_the_first_missing_package_is_refused(monkeypatch):
  errors.require(extras.TRAIN, "train")
  monkeypatch.setitem(sys.modules, "sklearn", None)
  with pytest.raises(ConfigError, match=r"scikit-learn .*mae_jax\[train\]"):
    errors.require(extras.TRAIN, "train")
  with pytest.raises(ConfigError, match=r"scikit-learn .*mae_jax\[viz\]"):
    errors.require(["sklearn"])


def test_every_extra_exists():
  setup = (ROOT / "setup.py").read_text()
  known = re.findall(r'^    "(\w+)": ', setup, re.MULTILINE)
  assert set(extras.EXTRAS.values()) <= set(known)
  # `train` has everything that a run needs.
  assert {extras.EXTRAS[name] for name in extras.TRAIN} <= {"train", "viz"}


@pytest.mark.parametrize(
  ("command", "hidden", "modules", "text"),
  [
    (
      ["train", "--config=digits", "--workdir=w"],
      "tensorflow",
      (),
      "tensorflow is not installed: pip install 'mae_jax[train]'",
    ),
    (
      ["report", "--workdir=w"],
      "plotly",
      ("mae_jax.tools.report.command", "mae_jax.tools.report.page"),
      "plotly is not installed: pip install 'mae_jax[report]'",
    ),
    (
      ["demo"],
      "skimage",
      (
        "mae_jax.tools.demo.command",
        "mae_jax.tools.demo.server",
        "mae_jax.tools.demo.services",
        "mae_jax.evals.image_metrics",
      ),
      "scikit-image is not installed: pip install 'mae_jax[viz]'",
    ),
    (
      ["serve", "--checkpoint=digits"],
      "starlette",
      ("mae_jax.tools.serve.command", "mae_jax.tools.serve.app"),
      "starlette is not installed: pip install 'mae_jax[serve]'",
    ),
  ],
)
def test_a_command_without_its_extra_is_one_line(
  monkeypatch, tmp_path, command, hidden, modules, text
):
  monkeypatch.chdir(tmp_path)
  for name in list(sys.modules):  # imported by other tests
    if name in modules or name.startswith(f"{hidden}."):
      monkeypatch.delitem(sys.modules, name)
      package, _, module = name.rpartition(".")
      if name in modules and package in sys.modules:
        monkeypatch.delattr(sys.modules[package], module, raising=False)
  monkeypatch.setitem(sys.modules, hidden, None)
  with pytest.raises(SystemExit) as caught:
    program.main(command)
  assert caught.value.code == f"error: {text}"
  assert list(tmp_path.iterdir()) == []
