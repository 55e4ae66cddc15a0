"""What the README says can be done can be done."""

from __future__ import annotations

import pathlib
import re
import shlex

import pytest
from absl import flags
from ml_collections import config_flags

from mae_jax.config import from_config_dict
from mae_jax.conversion import formats
from mae_jax.tools import (
  attention_maps,
  convert,
  features,
  neighbors,
  predict,
  reconstruct,
)
from mae_jax.tools.demo import __main__ as demo
from mae_jax.tools.export import command as export
from mae_jax.tools.report import __main__ as report

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(?:sh|bash)\n(.*?)```", README, re.DOTALL)
LINES = [
  line.split("  #")[0].strip()
  for block in BLOCKS
  for line in block.replace("\\\n", " ").splitlines()
  if line.strip() and not line.startswith("#")
]
PROGRAM = "python -m mae_jax."
TOOLS = {
  "mae_jax.tools.features": features,
  "mae_jax.tools.predict": predict,
  "mae_jax.tools.reconstruct": reconstruct,
  "mae_jax.tools.attention_maps": attention_maps,
  "mae_jax.tools.neighbors": neighbors,
  "mae_jax.tools.export": export,
}


def test_there_are_commands():
  assert sum("mae_jax.main" in line for line in LINES) >= 4
  assert "make train" in LINES
  assert "make test" in LINES


@pytest.mark.parametrize("line", [x for x in LINES if x.startswith("make ")])
def test_make_targets_exist(line):
  makefile = (ROOT / "Makefile").read_text()
  for target in line.split()[1:]:
    if "=" not in target:
      assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("line", [x for x in LINES if PROGRAM in x])
def test_configs_and_overrides_are_accepted(line, monkeypatch):
  monkeypatch.chdir(ROOT)
  words = shlex.split(line[line.index(PROGRAM) :])
  if words[2] == "mae_jax.tools.convert":
    settings = convert.parser().parse_args(words[3:])
    assert settings.inspect or (
      settings.out and settings.to in formats.FORMAT_NAMES
    )
    return
  if words[2] == "mae_jax.tools.demo":
    assert demo.parser().parse_args(words[3:]).checkpoint
    return
  if words[2] == "mae_jax.tools.report":
    assert report.parser().parse_args(words[3:]).workdir
    return
  if words[2] in TOOLS:
    assert TOOLS[words[2]].parser().parse_args(words[3:]).checkpoint
    return
  # Of a run, where it goes; of a plan, where it would; of data, a picture.
  place, default = {
    "mae_jax.main": ("workdir", None),
    "mae_jax.tools.plan": ("topology", None),
    "mae_jax.tools.inspect_data": ("out", "samples.png"),
  }[words[2]]
  values = flags.FlagValues()
  flag = config_flags.DEFINE_config_file(
    "config", flag_values=values, sys_argv=words[2:]
  )
  flags.DEFINE_string(place, default, "", flag_values=values)
  flags.DEFINE_bool("search", False, "", flag_values=values)
  flags.DEFINE_string("coordinator", None, "", flag_values=values)
  for name in ("num_processes", "process_id"):
    flags.DEFINE_integer(name, None, "", flag_values=values)
  rest = values(words[2:])
  assert rest == words[2:3]
  assert values[place].value
  config = from_config_dict(flag.value)
  assert config.optim.lr > 0


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_point_to_files(target):
  assert (ROOT / target).exists(), target
