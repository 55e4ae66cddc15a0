"""Tests of the README's launch commands and of the scripts' help."""

from __future__ import annotations

import shlex

import pytest
from absl import flags
from ml_collections import config_flags

from mae_jax.config import from_config_dict
from tests import test_readme
from tests.helpers.fake_cluster import ROOT

LINES = [x for x in test_readme.LINES if x.startswith("launch/")]
COMMANDS = {
  "launch/tpu_vm.sh": "create install run resume status logs stop delete",
  "launch/slurm.sh": "submit status logs stop",
  "launch/jobset.sh": "render apply status logs stop resume delete",
}


@pytest.mark.slow
def test_every_launch_command_of_the_readme_works(world):
  world.hosts(4)
  world.mains(**{f"host_{each}": [0] for each in range(4)})
  (world.path / "logs").mkdir()
  (world.path / "logs/mae-4242.log").touch()
  (world.path / "venv/bin").mkdir(parents=True)
  (world.path / "venv/bin/python").symlink_to(world.path / "bin/python3")
  slurm = [f"--logs={world.path}/logs", f"--venv={world.path}/venv"]
  assert {line.split()[0] for line in LINES} == set(COMMANDS)
  for line in LINES:
    script, command, *rest = shlex.split(line)
    extra = slurm if script == "launch/slurm.sh" else []
    done = world.run(script, command, *extra, *rest)
    assert done.returncode == 0, (line, done.stderr)
  assert not (world.path / "node").exists()
  assert not (world.path / "asked").exists()


@pytest.mark.parametrize("line", [x for x in LINES if " -- " in x])
def test_main_accepts_the_arguments_after_the_dashes(line, monkeypatch):
  monkeypatch.chdir(ROOT)
  words = shlex.split(line)
  words = ["main", *words[words.index("--") + 1 :]]
  values = flags.FlagValues()
  flag = config_flags.DEFINE_config_file(
    "config", flag_values=values, sys_argv=words
  )
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  assert values(words) == ["main"]
  assert from_config_dict(flag.value).optim.lr > 0


@pytest.mark.parametrize("script", COMMANDS)
def test_every_script_and_command_has_help(world, script):
  whole = world.run(script, "--help")
  assert whole.returncode == 0
  for command in COMMANDS[script].split():
    assert f" {command} " in whole.stdout
    assert world.run(script, command, "--help").stdout == whole.stdout
  assert world.calls() == []
