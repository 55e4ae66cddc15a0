"""Builds the documentation: a warning is an error, and notebooks run."""

from __future__ import annotations

import pathlib
import re

import pytest

import mae_jax
from mae_jax import __main__ as program
from mae_jax.config import RULES
from tests import test_readme
from tests.helpers import commands

RESULTS = pathlib.Path(__file__).parents[2] / "bench" / "results"


@pytest.mark.slow
def test_the_documentation_builds(tmp_path):
  done = commands.python(
    *("-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"),
    # Of an earlier build, results of notebooks would be taken.
    f"--define=nb_execution_cache_path={tmp_path / 'cache'}",
    *(f"--doctree-dir={tmp_path / 'trees'}", "docs", tmp_path / "html"),
    environ={"XLA_FLAGS": ""},
    timeout=600,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  page = (tmp_path / "html" / "reference" / "settings.html").read_text()
  assert "data.batch_size" in page


def test_every_setting_and_command_is_in_the_reference():
  folder = test_readme.DOCS / "reference"
  shown = {
    name: test_readme.RENDER((folder / name).read_text(), folder / name)
    for name in ("settings.md", "cli.md")
  }
  for name in RULES:
    assert f"| `{name}` | " in shown["settings.md"]
  for name in program.COMMANDS:
    assert f"\n## `{name}`\n" in shown["cli.md"]
  assert "<!-- generated" not in "".join(shown.values())


def test_every_public_name_is_in_the_reference():
  page = (test_readme.DOCS / "reference" / "python.md").read_text()
  shown = re.findall(r"^.. auto\w+:: mae_jax\.(?:\w+\.)*(\w+)", page, re.M)
  assert sorted(shown) == sorted(mae_jax.__all__)


@pytest.mark.parametrize("page", sorted(RESULTS.glob("*.md")), ids=str)
def test_every_benchmark_has_a_page_and_a_finding(page):
  shown = test_readme.DOCS / "benchmarks" / page.name
  assert re.search(f"generated: include .*/{page.name}", shown.read_text())
  listed = (test_readme.DOCS / "benchmarks.md").read_text()
  assert f"](benchmarks/{page.name}) |" in listed


def test_links_out_of_the_documentation_are_mended():
  render = test_readme.RENDER
  page = test_readme.DOCS / "guides" / "data.md"
  text = "[a](../../bench/results/step.md#x) [b](../../setup.py) [c](plan.md)"
  assert render(text, page) == "[a](../benchmarks/step.md#x) b [c](plan.md)"
  assert render(f"```\n{text}\n```", page) == f"```\n{text}\n```"
