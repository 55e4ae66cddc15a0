"""What the README says can be done can be done."""

from __future__ import annotations

import pathlib
import re
import shlex

import pytest
from absl import flags
from ml_collections import config_flags

from mae_jax import (
  attention,
  convert,
  features,
  neighbors,
  predict,
  reconstruct,
)
from mae_jax import config as config_lib
from mae_jax.demo import __main__ as demo
from mae_jax.dialects import table
from mae_jax.export import command as export
from mae_jax.report import __main__ as report

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
  "mae_jax.features": features,
  "mae_jax.predict": predict,
  "mae_jax.reconstruct": reconstruct,
  "mae_jax.attention": attention,
  "mae_jax.neighbors": neighbors,
  "mae_jax.export": export,
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
  if words[2] == "mae_jax.convert":
    settings = convert.parser().parse_args(words[3:])
    assert settings.inspect or (settings.out and settings.to in table.NAMES)
    return
  if words[2] == "mae_jax.demo":
    assert demo.parser().parse_args(words[3:]).checkpoint
    return
  if words[2] == "mae_jax.report":
    assert report.parser().parse_args(words[3:]).workdir
    return
  if words[2] in TOOLS:
    assert TOOLS[words[2]].parser().parse_args(words[3:]).checkpoint
    return
  # Of a run, where it goes; of a plan, where it would; of data, a picture.
  place, default = {
    "mae_jax.main": ("workdir", None),
    "mae_jax.plan": ("topology", None),
    "mae_jax.data.inspect": ("out", "samples.png"),
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
  config = config_lib.from_config_dict(flag.value)
  assert config.optim.lr > 0


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_point_to_files(target):
  assert (ROOT / target).exists(), target
