"""Checks the commands and links of the README and of `docs/`."""

from __future__ import annotations

import pathlib
import pkgutil
import re
import runpy
import shlex
import sys

import pytest

from mae_jax import __main__ as program
from mae_jax import main
from mae_jax.conversion import formats
from mae_jax.tools import cli

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"
PAGES = [
  ROOT / "README.md",
  *sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts),
]


def commands(page: pathlib.Path) -> list[str]:
  """Returns the lines of shell code of a page."""
  blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", page.read_text(), re.DOTALL)
  return [
    line.split("  #")[0].strip()
    for block in blocks
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
  ]


COMMANDS_OF = {page: commands(page) for page in PAGES}
LINES = [line for lines in COMMANDS_OF.values() for line in lines]
PROGRAM = re.compile(r"python -m mae_jax(?:\.main)? .*")
# Fills pages with what is generated when the documentation is built.
RENDER = runpy.run_path(str(DOCS / "_ext" / "mae_pages.py"))["render"]
FUNCTIONS = {
  name: pkgutil.resolve_name(command.function)
  for name, command in program.COMMANDS.items()
} | {"train": main.train, "evaluate": main.train}


def test_every_command_is_in_the_readme_or_its_module_shows_it():
  for name, function in FUNCTIONS.items():
    shown = README + (sys.modules[function.__module__].__doc__ or "")
    assert f"mae_jax {name}" in shown or name in ("train", "evaluate")


def test_the_readme_has_commands():
  assert sum("mae_jax.main" in line for line in LINES) >= 4
  assert "make train" in LINES
  assert "make test" in LINES


@pytest.mark.parametrize("line", [x for x in LINES if x.startswith("make ")])
def test_make_targets_exist(line):
  makefile = (ROOT / "Makefile").read_text()
  for target in line.split()[1:]:
    if "=" not in target:
      assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("line", [x for x in LINES if PROGRAM.search(x)])
def test_configs_and_overrides_are_accepted(line, monkeypatch):
  monkeypatch.chdir(ROOT)
  # A recipe reads this checkpoint.
  line = line.replace("checkpoint=runs/mine", "checkpoint=digits")
  words = shlex.split(PROGRAM.search(line)[0])[2:]
  if words[0] == "mae_jax.main":
    words[:1] = ["mae_jax", "train"]
  name, flags = words[1], words[2:]
  values = cli.parse(FUNCTIONS[name], name, flags)
  if name == "convert":
    assert values["inspect"] or (
      values["out"] and values["to"] in formats.FORMAT_NAMES
    )
  if "config" in values:
    assert values["config"].optim.lr > 0


@pytest.mark.parametrize(
  "page", PAGES, ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_point_to_files_and_headings(page):
  for path, anchor in re.findall(
    r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()
  ):
    target = page.parent / path if path else page
    assert target.exists(), path
    if anchor:
      text = target.read_text()
      if target.is_relative_to(DOCS):
        text = RENDER(text, target)
      headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
      assert anchor in map(_anchor, headings), anchor


def _anchor(heading: str) -> str:
  """Returns the anchor that GitHub gives a heading."""
  return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
