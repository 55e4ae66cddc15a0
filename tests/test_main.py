"""Tests of the command line: runs, and mistakes that are one line."""

from __future__ import annotations

import json
import resource

import pytest

from mae_jax import main
from mae_jax.utils.errors import ConfigError
from tests.helpers import commands


def command(*args):
  return commands.command("train", *args)


@pytest.mark.slow
def test_a_short_run_of_the_digits_recipe(tmp_path):
  args = (
    "--config=configs/digits.py",
    f"--workdir={tmp_path}",
    "--config.train.length=6 steps",
    "--config.train.log_every=2 steps",
    "--config.optim.warmup=2 steps",
    "--config.data.batch_size=64",
    "--config.model.depth=1",
  )
  first = command(*args)
  assert first.returncode == 0, first.stderr
  assert "trained to step 6" in first.stdout
  assert "linear probe, 5 per class" in first.stdout
  assert "always the largest class" in first.stdout
  assert "raw pixels" in first.stdout
  assert f"{tmp_path}/reconstructions.png" in first.stdout
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [2, 4, 6, 6]
  about = json.loads((tmp_path / "about.json").read_text())
  assert about["recipe"] == str(commands.ROOT / "configs" / "digits.py")
  assert about["config"]["model"]["depth"] == 1
  assert about["devices"] == "1 x cpu (cpu)"
  again = command(*args)
  assert again.returncode == 0, again.stderr
  assert "all 6 steps were already done" in again.stdout


@pytest.mark.parametrize(
  ("args", "complaint"),
  [
    (["--config.data.batch_sizee=3"], "did you mean 'batch_size'?"),
    (["--config.data.batch_size=many"], "batch_size=many: write a whole"),
    (["--config.task=pretrian"], "task='pretrian' is not known"),
    (["--config=configs/digit.py"], "digit.py is not a file: name a"),
    (["--config=configs/vit_l.py:epoch=9"], "'epoch=9' is not known"),
    (["extra"], "'extra' is not a flag"),
    (["--workdir=setup.py"], "--workdir=setup.py cannot be made (File exists)"),
    (["--workdir="], "--workdir is empty: give a directory"),
    (
      ["--config.train.compile_cache=setup.py"],
      "train.compile_cache=setup.py cannot be made (File exists)",
    ),
    (["--config.data.image_size=9"], "data.image_size=9 is not a multiple of"),
    (["--config.data.crop_scale=0.5,0.1"], "the smaller one first"),
    (["--wrkdir=x"], "--wrkdir is not a flag: did you mean --workdir?"),
  ],
)
def test_a_mistake_is_one_line(tmp_path, args, complaint):
  done = command("--config=configs/digits.py", f"--workdir={tmp_path}", *args)
  assert done.returncode == 1
  assert "Traceback" not in done.stderr
  assert complaint in done.stderr.strip().splitlines()[-1]
  assert not list(tmp_path.iterdir())


def test_debug_prints_the_traceback(tmp_path):
  done = command(
    "--config=configs/digits.py",
    f"--workdir={tmp_path}",
    "--config.task=other",
    "--debug",
  )
  assert done.returncode == 1
  assert "Traceback" in done.stderr


@pytest.mark.parametrize(
  ("code", "complaint"),
  [
    ("raise RuntimeError('boom')", "RuntimeError: boom"),
    ("get_config = lambda: {}", "returned a dict: return mae_jax.config"),
    ("def get_config(): pass", "returned a NoneType: return"),
    ("", "has no function get_config"),
    ("def get_config(:", "SyntaxError: invalid syntax"),
  ],
)
def test_a_broken_recipe_is_one_line(tmp_path, code, complaint):
  recipe = tmp_path / "recipe.py"
  recipe.write_text(code)
  done = command(f"--config={recipe}", f"--workdir={tmp_path}/run")
  assert done.returncode == 1
  lines = done.stderr.strip().splitlines()
  assert len(lines) == 1
  assert str(recipe) in lines[0]
  assert complaint in lines[0]


@pytest.mark.parametrize(
  ("limits", "raised"),
  [((256, 8192), 4096), ((20, 1024), 1024), ((256, -1), 4096), ((-1, -1), -1)],
)
def test_the_limit_of_open_files_is_raised(monkeypatch, limits, raised):
  changed = [limits]
  monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
  monkeypatch.setattr(resource, "setrlimit", lambda _, new: changed.append(new))
  main._allow_files()
  assert changed[-1] == (raised, limits[1])


def test_a_low_limit_of_open_files_is_refused(monkeypatch):
  monkeypatch.setattr(resource, "getrlimit", lambda _: (20, 100))
  monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
  with pytest.raises(ConfigError, match=r"allows 100 open .*ulimit -n 4096"):
    main._allow_files()
