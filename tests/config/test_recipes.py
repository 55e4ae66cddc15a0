"""Tests of recipes that are named, not written as files."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest

from mae_jax.config import overrides, recipe_names
from mae_jax.tools.report import run_logs
from mae_jax.train import run_info
from mae_jax.train.tasks import label_efficiency
from mae_jax.utils.errors import ConfigError
from tests.helpers import sample_checkpoints

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def test_names_are_those_of_the_files():
  assert recipe_names() == tuple(sorted(x.stem for x in CONFIGS.glob("*.py")))
  # Only a wheel has the recipes inside of the package.
  assert not (CONFIGS.parent / "mae_jax" / "configs").exists()


@pytest.mark.parametrize("name", recipe_names())
def test_a_name_is_its_file(monkeypatch, tmp_path, name):
  monkeypatch.chdir(tmp_path)  # names work in any directory
  assert overrides.recipe(name) == overrides.recipe(f"{CONFIGS}/{name}.py")


def test_a_name_takes_arguments_and_overrides():
  config = overrides.load(
    ["--config=vit_l:epochs=1600", "--config.data.batch_size=64"]
  )
  assert config.train.length == "1600 epochs"
  assert config.data.batch_size == 64
  assert overrides.find_recipe("vit_l:epochs=9") == (
    f"{CONFIGS}/vit_l.py:epochs=9"
  )


def test_files_are_found_beside_names(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  text = (CONFIGS / "digits.py").read_text()
  for name in ("mine", "mine.py", "digits.py"):
    pathlib.Path(name).write_text(text)
    assert overrides.find_recipe(name) == name
  # A name is that of the package, whatever is in the directory.
  pathlib.Path("digits").write_text("")
  assert overrides.find_recipe("digits") == f"{CONFIGS}/digits.py"


@pytest.mark.parametrize(
  ("text", "complaint"),
  [
    ("digit", "--config='digit' is not known: did you mean 'digits'? known"),
    ("nothing", "--config='nothing' is not known: known are ablations, cifar"),
    ("vit_m:epochs=1600", "did you mean 'vit_"),
    ("digit.py", "--config=digit.py is not a file: name a recipe, such as di"),
    ("no/digits", "--config=no/digits is not a file: name a recipe, such as"),
    ("", "--config= is not a file: name a recipe"),
  ],
)
def test_an_unknown_name_is_one_line(text: str, complaint: str):
  with pytest.raises(ConfigError) as caught:
    overrides.load([f"--config={text}"])
  assert complaint in str(caught.value)
  assert "\n" not in str(caught.value)


def test_pretrain_may_be_a_name():
  config = overrides.recipe("digits_finetune")
  named = dataclasses.replace(
    config.label_efficiency, pretrain="digits:steps=9"
  )
  config = dataclasses.replace(config, label_efficiency=named)
  first = label_efficiency._pretrain_config(config)
  assert first.train.length == "9 steps"


def test_the_file_of_a_named_recipe_is_recorded(monkeypatch):
  path = f"{CONFIGS}/digits.py:steps=9"
  assert run_info._recipe(["x", "--config=digits:steps=9"]) == path
  started = {"command": ["x", "--config=digits:steps=9"], "recipe": path}
  run = run_logs.RunLogs("w", [], {}, None, path, started)
  assert run_logs.recipe_config(run) == overrides.recipe("digits:steps=9")


@pytest.mark.parametrize("task", ["finetune", "linprobe"])
def test_the_checkpoint_decides_for_few_images(task, tmp_path):
  start = sample_checkpoints.save(tmp_path / "start", "mae")
  recipe = f"--config={task}_few:checkpoint={start}"
  config = overrides.load([recipe, "--config.data.mean=0.1,0.2,0.3"])
  data, before = config.data, sample_checkpoints.DATA
  assert config.init_from == str(start)
  assert (data.image_size, data.std) == (before["image_size"], before["std"])
  assert data.mean == (0.1, 0.2, 0.3)
  for name in ("variant", "width", "depth", "heads", "mlp_dim", "norm_eps"):
    assert getattr(config.model, name) == sample_checkpoints.MODEL[name]
  few = overrides.recipe(f"{task}_few")
  assert config.optim == few.optim
  assert (config.task, config.model.dtype) == (task, few.model.dtype)
  with pytest.raises(ConfigError, match="nowhere"):
    overrides.recipe(f"{task}_few:checkpoint={tmp_path / 'nowhere'}")


def test_classifiers_of_few_images_fit_their_pre_training():
  few = overrides.recipe("few_images:channels=1")
  for task in ("finetune", "linprobe"):
    config = overrides.recipe(f"{task}_few:channels=1,images=640")
    assert (config.task, config.train.length) == (task, "640 examples")
    assert config.data.image_size == few.data.image_size
    assert config.data.channels == 1
    model = dataclasses.replace(config.model, dtype=few.model.dtype)
    assert model == few.model


def test_pre_training_that_goes_on_has_the_network_of_the_paper():
  config = overrides.recipe("continue_vit_b:images=1000")
  paper = overrides.recipe("vit_b")
  assert config.train.length == "1000 examples"
  model = dataclasses.replace(config.model, norm_eps=paper.model.norm_eps)
  assert model == paper.model
  assert config.objective == paper.objective
  for name in ("image_size", "mean", "std", "crop_scale", "eval_crop"):
    assert getattr(config.data, name) == getattr(paper.data, name)


@pytest.mark.parametrize(
  ("body", "reason"),
  [
    ("raise ValueError('a\\nb')", "ValueError: a b"),
    ("raise SystemExit('no')", "SystemExit: no"),
    ("def f(:", "SyntaxError: "),
    (
      "class Odd(Exception):\n  def __str__(self): raise self\nraise Odd",
      "Odd: <exception str() failed>",
    ),
  ],
)
def test_a_recipe_that_fails_is_named(body: str, reason: str, tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(body)
  with pytest.raises(ConfigError) as caught:
    overrides.recipe(str(path))
  assert str(caught.value).startswith(f"{path}: {reason}")
  assert "\n" not in str(caught.value)
