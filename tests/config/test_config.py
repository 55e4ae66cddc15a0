"""Tests of settings: parsing, checks, and a lossless round trip to JSON.

Every recipe under `configs/` is loaded, and its model and optimizer are built
without any data.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from mae_jax.config import (
  RULES,
  TASKS,
  Config,
  Duration,
  ObjectiveConfig,
  check_key,
  config_dict,
  from_config_dict,
  leaves,
  lookup,
  overrides,
  parse_arg,
  to_dict,
)
from mae_jax.data import prepare, sources
from mae_jax.distributed import sharding
from mae_jax.evals import standalone
from mae_jax.models import (
  architecture,
  factory,
  losses,
  mae,
  masked_input,
  masking,
  targets,
  transformer,
)
from mae_jax.train import objectives, optim, tasks
from mae_jax.train.sinks import trackers
from mae_jax.train.tasks import pretrain
from mae_jax.train.tasks.base import DataInfo
from mae_jax.utils.errors import ConfigError
from tests.helpers import tiny

RECIPES = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))
# The function that builds the network of each task.
BUILDERS = {
  "pretrain": factory.masked_autoencoder,
  "finetune": lambda config: factory.classifier(config, 1000),
  "linprobe": factory.encoder,
  "label_efficiency": factory.encoder,
}


def unset() -> Config:
  """Returns the tiny config as a recipe writes it: `blr` sets `lr`."""
  config = tiny.config()
  return dataclasses.replace(
    config, optim=dataclasses.replace(config.optim, lr=None)
  )


@pytest.fixture
def parse(tmp_path):
  """Reads command line arguments as `main` does."""
  recipe = tmp_path / "recipe.py"
  recipe.write_text(
    "from mae_jax.config import config_dict\n"
    "from tests.config.test_config import unset\n"
    "get_config = lambda arg=None: config_dict(unset())\n"
  )

  def run(*args: str) -> Config:
    argv = [f"--config={recipe}", *(f"--config.{arg}" for arg in args)]
    settings, rest = overrides.split(argv)
    assert rest == []
    return overrides.load(settings)

  return run


@pytest.mark.parametrize(
  ("text", "amount", "unit", "steps"),
  [
    ("1500 steps", 1500, "steps", 1500),
    ("1 step", 1, "steps", 1),
    ("0 steps", 0, "steps", 0),
    ("2 epochs", 2, "epochs", 31),  # 2 * 1000 / 64 = 31.25
    ("1 epoch", 1, "epochs", 15),
    ("0.1epochs", 0.1, "epochs", 1),
    ("51_200 examples", 51200, "examples", 800),
    ("64 examples", 64, "examples", 1),
    ("63 examples", 63, "examples", 0),
    (" 1e3  steps ", 1000, "steps", 1000),
  ],
)
def test_duration(text: str, amount: float, unit: str, steps: int):
  duration = Duration.parse(text)
  assert duration == Duration(amount, unit)
  assert duration.steps(num_examples=1000, batch_size=64) == steps


def test_rounding_never_loses_a_step():
  for tenths in range(1, 100):
    duration = Duration.parse(f"{tenths / 10} epochs")
    assert duration.steps(num_examples=1000, batch_size=1) == 100 * tenths


@pytest.mark.parametrize(
  "text",
  [
    "",
    "5",
    "steps",
    "five steps",
    "5 hours",
    "-1 epochs",
    "nan steps",
    "inf steps",
    "5 stepss",
    "5 6 steps",
    "5 steps 6",
  ],
)
def test_text_that_is_no_duration_is_refused(text: str):
  with pytest.raises(ConfigError, match="is not a duration: write") as error:
    Duration.parse(text, "train.length")
  assert f"train.length={text!r}" in str(error.value)
  assert "steps, epochs, examples" in str(error.value)


def test_nothing_changes_without_arguments(parse):
  wanted = unset()
  lr = wanted.optim.blr * wanted.data.batch_size / 256
  optim = dataclasses.replace(wanted.optim, lr=lr)
  assert parse() == dataclasses.replace(wanted, optim=optim)


@pytest.mark.parametrize(
  ("arg", "wanted"),
  [
    ("data.image_size=32", (32, 32)),  # one number means a square
    ("data.image_size=(32,16)", (32, 16)),
    ("data.mean=(0.1,)", (0.1,)),
    ("data.crop_scale=(0.5,1)", (0.5, 1.0)),
    ("data.flip=true", True),
    ("data.path=gs://bucket/images", "gs://bucket/images"),
    # These are None in the recipe and have a type nevertheless:
    ("model.width=64", 64),
    ("model.patch_size=(4,2)", (4, 2)),
    ("model.patch_size=4", (4, 4)),
    ("optim.grad_clip=1.5", 1.5),
    ("optim.grad_clip=1", 1.0),
    ("optim.blr=1", 1.0),
    ("eval.shots=50", (50,)),
    ("eval.shots=(10,50,0)", (10, 50, 0)),
    ("train.length=3 epochs", "3 epochs"),
    ("data.image_size=32,16", (32, 16)),
    ("data.image_size=[32,16]", (32, 16)),
  ],
)
def test_override(parse, arg: str, wanted):
  section, field = arg.partition("=")[0].split(".")
  value = getattr(getattr(parse(arg), section), field)
  assert value == wanted
  assert type(value) is type(wanted)


def test_the_last_of_two_values_of_a_tuple_counts(parse):
  config = parse("data.image_size=8", "data.image_size=16")
  assert config.data.image_size == (16, 16)


@pytest.mark.parametrize(
  ("key", "text"),
  [
    ("data.batchsize", "config.data.batchsize .* did you mean 'batch_size'"),
    ("batch_size", "config.batch_size .* mean 'config.data.batch_size'"),
    ("dta.batch_size", "config.dta is not known: did you mean 'data'"),
    ("data", "config.data is a section: .* instance config.data.source"),
    ("data.mean.x", "data.mean.x is not known: set the whole config.data.mean"),
    ("", "config. is not known"),
  ],
)
def test_an_unknown_setting_is_refused(key: str, text: str):
  with pytest.raises(ConfigError, match=text):
    check_key(key)
  check_key("data.batch_size")


def test_every_setting_is_read():
  """Finds a read of an attribute of each setting's name in the package."""
  package = pathlib.Path(__file__).parents[2] / "mae_jax"
  read = {
    node.attr
    for path in package.rglob("*.py")
    if path.parent.name != "config"
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
  }
  # `architecture.build` reads these by a loop over the fields of Dims.
  read |= {field.name for field in dataclasses.fields(architecture.Dims)}
  # The data pipeline composes "train_split"; `config_dict` computes lr.
  read |= {"train_split", "blr"}
  settings = to_dict(tiny.config())
  names = {
    name: value if isinstance(value, dict) else {name}
    for name, value in settings.items()
  }
  unread = {
    f"{section}.{field}"
    for section, fields in names.items()
    for field in fields
    if field not in read
  }
  assert unread == set()


def test_lr_follows_blr_and_the_batch(parse):
  assert parse("data.batch_size=512").optim.lr == pytest.approx(1e-2 * 2)
  changed = parse("optim.blr=0.5", "data.batch_size=64")
  assert changed.optim.lr == pytest.approx(0.5 / 4)
  swapped = parse("data.batch_size=64", "optim.blr=0.5")
  assert swapped == changed


def test_an_explicit_lr_wins(parse):
  assert parse("optim.lr=0.25", "data.batch_size=512").optim.lr == 0.25
  assert parse("data.batch_size=512", "optim.lr=0.25").optim.lr == 0.25
  fixed = dataclasses.replace(
    unset(), optim=dataclasses.replace(unset().optim, lr=0.125)
  )
  values = config_dict(fixed)
  values.data.batch_size = 512
  assert from_config_dict(values).optim.lr == 0.125


@pytest.mark.parametrize(
  ("arg", "text"),
  [
    ("model.width=6.5", "--config.model.width=6.5: write a whole number"),
    ("data.flip=maybe", "--config.data.flip=maybe: write true or false"),
    ("optim.blr=high", "--config.optim.blr=high: write a number"),
    ("data.image_size=(8", r"image_size=\(8: write a number, or several"),
    ("data.batchsize=2", "data.batchsize is not known: did you mean 'batch_s"),
  ],
)
def test_a_wrong_argument_is_refused(parse, arg: str, text: str):
  with pytest.raises(ConfigError, match=text):
    parse(arg)


def test_a_value_may_follow_its_name(tmp_path):
  settings, rest = overrides.split(
    [
      "--config",
      "a.py",
      "--out=x",
      "--config.data.path",
      "b",
      "--config.eval.raw_pixels",
      "--noconfig.data.flip",
      "-config.train.seed=3",
      "y",
    ]
  )
  assert rest == ["--out=x", "y"]
  assert settings == [
    "--config=a.py",
    "--config.data.path=b",
    "--config.eval.raw_pixels=true",
    "--config.data.flip=false",
    "--config.train.seed=3",
  ]


@pytest.mark.parametrize(
  ("old", "new", "value"),
  [
    ("adversary.judges=patch", "discriminator.type", "patch"),
    ("objective.hidden=noise", "objective.masked_input", "noise"),
    ("objective.varies=staged", "objective.mask_schedule", "sequential"),
    ("data.upright=false", "data.exif_rotate", False),
    ("data.lanes=8", "data.record_shards", 8),
    ("eval.draws=3", "eval.num_trials", 3),
    ("compare.seeds=2", "label_efficiency.seeds", 2),
    ("train.stop_seconds=5", "train.shutdown_timeout", 5.0),
    ("objective.norm_pix_loss=false", "objective.target", "raw"),
    ("task=compare", "task", "label_efficiency"),
  ],
)
def test_an_old_name_is_understood_with_a_warning(
  parse, capsys, old: str, new: str, value: Any
):
  found = dict(leaves(parse(old)))
  assert found[new] == value
  assert f"is now --config.{new}=" in capsys.readouterr().err


def test_an_old_keyword_is_understood_with_a_warning():
  with pytest.warns(FutureWarning, match=r"hidden='noise'\) is now masked_inp"):
    found = ObjectiveConfig(hidden="noise")
  assert found.masked_input == "noise"
  with pytest.warns(FutureWarning, match="is now mask_schedule='sequential'"):
    found = ObjectiveConfig(varies="staged")
  assert found.mask_schedule == "sequential"


def test_every_setting_has_a_text_and_its_default_is_allowed():
  for name, rule in RULES.items():
    assert rule.help, name
  text = overrides.help_text()
  assert all(f"--config.{name}=" in text for name in RULES)


def test_choices_are_the_names_of_the_tables():
  tables = {
    "data.eval_fit": prepare.FITS,
    "data.eval_resample": prepare.RESAMPLE,
    "data.source": sources.SOURCES,
    "discriminator.loss": objectives.GAN_LOSSES,
    "discriminator.type": objectives.OBJECTIVES,
    "eval.measure": standalone.MEASURES,
    "eval.pooling": mae.POOLINGS,
    "model.activation": transformer.ACTIVATIONS,
    "model.dtype": factory.DTYPES,
    "model.remat": {"auto", *transformer.REMAT_POLICIES},
    "objective.contrast": {"none", *losses.CONTRASTIVE_LOSSES},
    "objective.loss": losses.PIXEL_LOSSES,
    "objective.loss_on": losses.LOSS_REGIONS,
    "objective.mask": {"given", *masking.STRATEGIES},
    "objective.mask_schedule": {"random", "sequential"},
    "objective.mask_strategies": {"given", *masking.STRATEGIES},
    "objective.masked_input": masked_input.MASKED_INPUTS,
    "objective.target": targets.TARGETS,
    "objective.trainable": objectives.FROZEN,
    "task": {*TASKS, *tasks.OTHERS},
    "train.trackers": trackers.TRACKERS,
  }
  for name, table in tables.items():
    assert set(RULES[name].choices) == set(table), name


def test_a_config_dict_is_locked():
  values = config_dict(unset())
  with pytest.raises(AttributeError, match="locked"):
    values.model.widht = 3
  with pytest.raises(TypeError):
    values.data.batch_size = "many"


def as_dict() -> dict:
  return to_dict(tiny.config())


@pytest.mark.parametrize(
  ("path", "value", "text"),
  [
    (
      ("data", "batchsize"),
      3,
      "config.data.batchsize is not known: did you mean 'batch_size'",
    ),
    (("taks",), "x", "config.taks is not known: did you mean 'task'"),
    (("data", "zzz"), 1, "config.data.zzz is not known: known are background,"),
    (
      ("model", "dtype"),
      "float16",
      "model.dtype=float16 is not offered: .* Use bfloat16, or float32 on GPUs",
    ),
    (("model", "width"), "x", "config.model.width='x' is a str, not a int"),
    (("model", "depth"), True, "config.model.depth=True is a bool, not a int"),
    (("optim", "blr"), True, "config.optim.blr=True is a bool, not a float"),
    (("data", "flip"), 1, "config.data.flip=1 is a int, not a bool"),
    (("model", "depth"), 2.0, "config.model.depth=2.0 is a float, not a int"),
    (("task",), None, "config.task=None is a NoneType, not a str"),
    (
      ("data", "image_size"),
      (8, 8, 8),
      r"config.data.image_size=\(8, 8, 8\) must have 2 items",
    ),
    (("data", "mean"), ("x",), "config.data.mean='x' is a str, not a float"),
    (
      ("data", "width"),
      8,
      "config.data.width is not known: did you mean 'config.model.width'",
    ),
    (("data", 3), 1, "config.data.3 is not known: known are background"),
    (("data", "a\nb"), 1, r"config.data.'a\\nb' is not known: known are"),
    (("model", "width"), "x" * 1000, "='xx[x]{100,190}... is a str"),
  ],
)
def test_wrong_values_are_refused(path, value, text: str):
  values = as_dict()
  section = values
  for key in path[:-1]:
    section = section[key]
  section[path[-1]] = value
  with pytest.raises(ConfigError, match=text):
    from_config_dict(values)


def test_a_missing_key_is_refused_unless_it_has_a_default():
  values = as_dict()
  del values["eval"], values["model"]["unroll"]
  assert from_config_dict(values).model.unroll == 0
  del values["data"]["batch_size"]
  with pytest.raises(ConfigError, match="batch_size is missing"):
    from_config_dict(values)


@pytest.mark.parametrize(
  "section", ["data", "model", "objective", "optim", "train", "mesh", "eval"]
)
def test_a_section_must_hold_settings(section: str):
  values = as_dict() | {section: 3}
  with pytest.raises(ConfigError, match=f"config.{section}=3 is not a sect"):
    from_config_dict(values)


def test_a_round_trip_through_json_loses_nothing():
  config = tiny.config(
    model={"patch_size": (4, 2)}, optim={"grad_clip": 1.0}, init_from="a/b"
  )
  assert from_config_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_arguments_of_a_recipe_are_parsed():
  assert vars(parse_arg(None, epochs=800)) == {"epochs": 800}
  assert vars(parse_arg("", epochs=800)) == {"epochs": 800}
  arg = parse_arg("epochs=1600,size=x=y,rate=2", epochs=8, size="", rate=0.1)
  assert vars(arg) == {"epochs": 1600, "size": "x=y", "rate": 2.0}
  assert isinstance(arg.rate, float)


@pytest.mark.parametrize(
  ("arg", "text"),
  [
    (
      "epoch=3",
      "'epoch=3' is not known: write key=value.* one of epochs, size",
    ),
    ("epochs", "'epochs' is not known: write key=value"),
    ("epochs=many", "epochs='many' is not of type int"),
    ("epochs=1.5", "epochs='1.5' is not of type int"),
  ],
)
def test_wrong_arguments_of_a_recipe_are_refused(arg: str, text: str):
  with pytest.raises(ConfigError, match=text):
    parse_arg(arg, epochs=800, size="L")


def test_lookup():
  assert lookup({"a": 1}, "a", "task") == 1
  with pytest.raises(ConfigError, match="task='pretrian' is not known: did "):
    lookup({"pretrain": 1, "finetune": 2}, "pretrian", "task")


def test_there_are_recipes():
  assert RECIPES


# Base learning rate, layer decay, drop path, erasing and epochs: FINETUNE.md of
# the published code, and He et al. 2021, table 9.
FINETUNE = {
  ("b", "code"): (5e-4, 0.65, 0.1, 0.25, 100),
  ("l", "code"): (1e-3, 0.75, 0.2, 0.25, 50),
  ("h", "code"): (1e-3, 0.75, 0.3, 0.25, 50),
  ("b", "paper"): (1e-3, 0.75, 0.1, 0, 100),
  ("l", "paper"): (1e-3, 0.75, 0.1, 0, 50),
  ("h", "paper"): (1e-3, 0.75, 0.2, 0, 50),
}


VARIANTS = {"b": "B/16", "l": "L/16", "h": "H/14"}


@pytest.mark.parametrize("size", VARIANTS)
@pytest.mark.parametrize(
  ("program", "prefix", "arg"),
  [
    ("pretrain", "", "epochs=1600"),
    ("finetune", "finetune_", "recipe=paper,size=448"),
    ("linprobe", "linprobe_", "recipe=paper"),
  ],
)
def test_short_names_of_imagenet_recipes(program, prefix, arg, size):
  path = f"configs/{program}_imagenet.py:variant={VARIANTS[size]}"
  short = f"configs/{prefix}vit_{size}.py"
  config = overrides.recipe(path)
  assert overrides.recipe(short) == config
  assert overrides.recipe(f"{short}:{arg}") == overrides.recipe(f"{path},{arg}")
  assert config.model.variant == VARIANTS[size]
  with pytest.raises(ConfigError, match="variant is given twice"):
    overrides.recipe(f"{short}:variant=B/16")


@pytest.mark.parametrize("program", ["pretrain", "finetune", "linprobe"])
def test_imagenet_recipes_are_for_vit_l_by_default(program: str):
  path = f"configs/{program}_imagenet.py"
  assert overrides.recipe(path).model.variant == "L/16"
  with pytest.raises(ConfigError, match="'S/16' is not known: use B/16 or L/"):
    overrides.recipe(f"{path}:variant=S/16")


@pytest.mark.parametrize(("size", "recipe"), FINETUNE)
def test_fine_tuning_recipes(size: str, recipe: str):
  path = f"configs/finetune_vit_{size}.py:recipe={recipe}"
  config = overrides.recipe(path)
  optim, classify = config.optim, config.classify
  assert (
    optim.blr,
    optim.layer_decay,
    classify.drop_path,
    classify.erasing,
    Duration.parse(config.train.length).amount,
  ) == FINETUNE[size, recipe]
  assert (optim.b1, optim.b2, optim.weight_decay) == (0.9, 0.999, 0.05)
  assert (optim.min_lr, optim.warmup) == (1e-6, "5 epochs")
  assert config.data.batch_size == 1024
  assert (config.data.randaugment, config.data.randaugment_std) == (9, 0.5)
  assert (classify.mixup, classify.cutmix, classify.mix_switch) == (0.8, 1, 0.5)
  assert (classify.smoothing, classify.pooling) == (0.1, "mean")
  assert config.data.eval_crop == 224 / 256
  large = overrides.recipe(f"{path},size=448")
  assert large.data.image_size == (448, 448)
  assert large.data.eval_crop == 1


@pytest.mark.parametrize("recipe", ["code", "paper"])
@pytest.mark.parametrize("size", "blh")
def test_linear_probe_recipes(size: str, recipe: str):
  config = overrides.recipe(f"configs/linprobe_vit_{size}.py:recipe={recipe}")
  epochs = 90 if size == "b" or recipe == "paper" else 50
  assert config.train.length == f"{epochs} epochs"
  assert (config.optim.blr, config.optim.weight_decay) == (0.1, 0)
  assert (config.optim.min_lr, config.optim.warmup) == (0, "10 epochs")
  assert config.data.batch_size == 16384
  assert config.data.crop_clipped
  assert (config.classify.pooling, config.classify.head_std) == ("cls", 0.01)
  assert config.classify.norm_group == 512


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe(path: pathlib.Path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  command = f"python -m mae_jax.main --config=configs/{path.name}"
  assert command in module.__doc__
  values = module.get_config()
  assert isinstance(values, ml_collections.ConfigDict)
  assert values.is_locked
  config = from_config_dict(values)
  assert from_config_dict(json.loads(json.dumps(to_dict(config)))) == config
  values.data.batch_size *= 2
  doubled = from_config_dict(values).optim.lr
  assert doubled == pytest.approx(2 * config.optim.lr)
  for field, text in {
    "eval.every": config.eval.every,
    "train.log_every": config.train.log_every,
    "train.save_every": config.train.save_every,
  }.items():
    assert Duration.parse(text, field).steps(1000, 10) >= 0
  total, warmup = (
    Duration.parse(text).steps(1_281_167, config.data.batch_size)
    for text in (config.train.length, config.optim.warmup)
  )
  rate = optim.learning_rate(config.optim, total, warmup)(warmup)
  assert float(rate) == pytest.approx(config.optim.lr)
  model = BUILDERS[config.task](config)
  images = jnp.zeros((1, *config.data.image_size, config.data.channels))
  keys = {"params": jax.random.key(0), "mask": jax.random.key(1)}
  init = functools.partial(model.init, method=model.__call__)
  params = jax.eval_shape(init, keys, images)["params"]
  state = jax.eval_shape(optim.adamw(config.optim).init, params)
  assert len(jax.tree.leaves(state)) > 2 * len(jax.tree.leaves(params))
  with pytest.raises(ConfigError, match="config argument"):
    module.get_config("nonsense=1")


@pytest.mark.parametrize(
  ("section", "field", "value", "complaint"),
  [
    ("data", "batch_size", 0, "data.batch_size=0 must be at least 1"),
    ("data", "channels", 0, "must be at least 1"),
    ("data", "image_size", (0, 8), "must be at least 1"),
    ("data", "record_shards", 0, "must be at least 1"),
    ("data", "prefetch", -1, "must be at least 0"),
    ("data", "std", (0.5, 0.0), r"std=\(0.5, 0.0\) must be at least 1e-06"),
    ("data", "batch_size", 2**63, "must be at most 1048576"),
    ("data", "eval_crop", 1e-30, "must be at least 0.1"),
    ("data", "eval_crop", 1.1, "must be at most 1"),
    ("data", "record_shards", 2**31, "must be at most 2147483647"),
    ("eval", "every", "1 weeks", "eval.every='1 weeks' is not a duration"),
    ("eval", "max_train", 1, "eval.max_train=1 lets a probe see one image"),
    ("mesh", "cpu_devices", 10**5, "must be at most 1024"),
    ("model", "width", 10**9, "must be at most 65536"),
    ("objective", "mask_ratio", -1e300, "must be at least 0"),
    ("optim", "blr", 10**400, "is not a finite number"),
    ("optim", "blr", 1e300, "must be at most 1e"),
    ("train", "length", "1e300 epochs", "length='1e300 epochs' is not a dur"),
    ("train", "seed", 2**32, "must be at most 2147483647"),
    ("data", "mean", (float("nan"),), "is not a finite number"),
    ("eval", "num_trials", 0, "must be at least 1"),
    ("eval", "images", -1, "must be at least 0"),
    ("eval", "knn_k", 0, "must be at least 1"),
    ("eval", "knn_temperature", 0.0, "must be above 0"),
    ("eval", "shots", (5, -1), "must be at least 0"),
    ("eval", "probe_l2", -1.0, "must be above 0"),
    ("model", "patch_size", (0, 2), "must be at least 1"),
    ("model", "unroll", -1, "must be at least 0"),
    ("objective", "mask_ratio", float("nan"), "is not a finite number"),
    ("optim", "b1", 1.0, "must be below 1"),
    ("optim", "b2", -0.1, "must be at least 0"),
    ("optim", "blr", -1.0, "must be at least 0"),
    ("optim", "lr", float("inf"), "is not a finite number"),
    ("optim", "grad_clip", 0.0, "must be above 0"),
    ("train", "keep", 0, "must be at least 1"),
    ("train", "max_bad_steps", 0, "must be at least 1"),
    ("train", "save_every_minutes", -1.0, "must be at least 0"),
  ],
)
def test_values_out_of_range_are_refused(section, field, value, complaint):
  values = to_dict(tiny.config())
  values[section][field] = value
  with pytest.raises(ConfigError, match=complaint):
    from_config_dict(values)


def test_a_positive_interval_is_at_least_one_step():
  parse = Duration.parse
  assert parse("1 epochs").interval(10, 64) == 1
  assert parse("1 epochs").steps(10, 64) == 0
  assert parse("0 epochs").interval(10, 64) == 0
  assert parse("800 epochs").steps(1281167, 4096) == 250227  # as in README.md


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_record_shards_of_imagenet_are_not_split_between_devices(name):
  """Any order of the devices then gives each process whole record shards."""
  data = overrides.recipe(f"configs/{name}.py").data
  assert data.batch_size % data.record_shards == 0
  for devices in (1, 8, 64, 128, 256):
    assert (
      data.batch_size // devices % (data.batch_size // data.record_shards) == 0
    )


@pytest.mark.parametrize("data", ["imagenet", "digits", "photos"])
@pytest.mark.parametrize(
  "change",
  [
    *("decoder_depth=12", "decoder_width=128", "masked_input=mask_tokens"),
    *("target=raw", "target=norm_pix", "target=pca"),
    *("crop=none", "crop=fixed", "crop=random", "crop=jitter"),
    *("mask=random75", "mask=block50", "mask=block75", "mask=grid75"),
    *(
      "mask=middle",
      "ratios=50/75,mask_schedule=sequential",
      "mask_strategies=random/block",
    ),
    *("contrast=batch", "discriminator=image", "loss=l1,loss_on=all"),
    "trainable=decoder",
  ],
)
def test_each_ablation_can_be_built(change: str, data: str):
  """Checks that no other setting changes, and that the model initializes."""
  path = f"configs/ablations.py:{change},data={data}"
  config = overrides.recipe(path)
  base = overrides.recipe(f"configs/ablations.py:data={data}")
  task = pretrain.PretrainTask(config, sharding.make_mesh(config.mesh))
  task.prepare(DataInfo(num_examples=10**6))
  jax.eval_shape(task.init)
  before, after = dict(leaves(base)), dict(leaves(config))
  changed = {name for name in after if after[name] != before[name]}
  assert changed <= {
    *("model.decoder_depth", "model.decoder_width"),
    "objective.contrast_patches",
    *("objective.masked_input", "objective.target", "objective.mask"),
    *("objective.mask_ratio", "objective.contrast", "objective.loss"),
    *("objective.loss_on", "objective.trainable", "objective.mask_schedule"),
    *(
      "objective.mask_strategies",
      "objective.mask_ratios",
      "objective.mask_rows",
    ),
    *("discriminator.type", "discriminator.depth", "discriminator.width"),
    *("data.crop_scale", "data.crop_ratio", "data.flip"),
    *("data.crop_fixed", "data.color_jitter"),
  }
  assert changed or change.partition("=")[2] in (
    *("norm_pix", "raw", "random", "random75"),
  )


@pytest.mark.parametrize(
  ("arg", "text"),
  [
    ("data=mnist", "data='mnist' is not known: use imagenet or digits or"),
    ("mask=block", "mask='block' is not a strategy and a percentage"),
    ("crop=small", "crop='small' is not known: use random or jitter or"),
    ("decoder=1", "key is one of data, decoder_depth, decoder_width, mask"),
  ],
)
def test_unknown_ablations_are_refused(arg: str, text: str):
  with pytest.raises(ConfigError, match=text):
    overrides.recipe(f"configs/ablations.py:{arg}")


@pytest.mark.parametrize(("old", "new"), [(True, "norm_pix"), (False, "raw")])
def test_norm_pix_loss_of_old_configs_is_read(old: bool, new: str):
  values = to_dict(tiny.config())
  del values["objective"]["target"]
  values["objective"]["norm_pix_loss"] = old
  assert from_config_dict(values).objective.target == new


@pytest.mark.parametrize(
  ("text", "wanted"),
  [
    ("random,block", ("random", "block")),
    ("grid", ("grid",)),
    ("('random', 'block')", ("random", "block")),
  ],
)
def test_a_list_of_words_needs_no_quotes(parse, text: str, wanted):
  assert (
    parse(f"objective.mask_strategies={text}").objective.mask_strategies
    == wanted
  )


@pytest.mark.parametrize("text", ["0110,1111", "1010,1111", "0000,0101", "1,0"])
def test_rows_of_a_mask_keep_their_zeros(parse, text: str):
  found = parse(f"objective.mask_rows={text}").objective.mask_rows
  assert ",".join(found) == text


def test_init_adapt_without_init_from_is_refused():
  with pytest.raises(ConfigError, match="init_from, which is not set"):
    tiny.config(init_adapt=True)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_setting_by_its_old_and_its_new_name_is_refused():
  with pytest.raises(TypeError, match="norm_pix_loss is the old name of targ"):
    ObjectiveConfig(target="raw", norm_pix_loss=True)
