"""Runs and tools start from weights of other programs."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest
import torch

from mae_jax import checkpoints, conversion
from mae_jax.config import Config, EvalConfig, LabelEfficiencyConfig
from mae_jax.conversion import load
from mae_jax.evals import class_matching
from mae_jax.models import pos_embed
from mae_jax.tools import convert, feature_extractor
from mae_jax.train import loop, step
from mae_jax.utils.errors import ConfigError
from tests.conversion import test_refusals
from tests.helpers import facebook_model, runs, sample_checkpoints, tiny
from tests.helpers.commands import command, write_images
from tests.helpers.params import slow

SUFFIX = test_refusals.SUFFIX
# As the tests' tiny runs, so that the weights fit the digits.
DATA = {"image_size": (8, 8), "channels": 1, "mean": (0.3,), "std": (0.4,)}
MODEL = {
  "variant": "Ti/2",
  "width": 32,
  "depth": 2,
  "heads": 4,
  "mlp_dim": 64,
  "decoder_width": 16,
  "decoder_depth": 1,
  "decoder_heads": 4,
}


def digits_weights(root: pathlib.Path, kind: str, to: str) -> pathlib.Path:
  """Writes a digits network of a kind in a format, from `root`/start."""
  start = sample_checkpoints.save(root / "start", kind, data=DATA, model=MODEL)
  out = root / f"theirs{SUFFIX.get(to, '')}"
  convert.convert(str(start), str(out), to=to)
  return out


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """`digits_weights` that writes each kind in each format once."""

  @functools.cache
  def write(kind: str, to: str) -> pathlib.Path:
    return digits_weights(tmp_path_factory.mktemp("weights"), kind, to)

  return write


def initial(config: Config) -> checkpoints.TrainState:
  """Initializes a run's state on two devices that shard parameters."""
  mesh = runs.devices_mesh(2, fsdp=2)
  task, data = runs.open_task(config, mesh)
  with jax.set_mesh(mesh):
    state = loop.initial_state(task, data, config, mesh, "/nowhere")
  shapes = step.abstract_state(task)
  for leaf, wanted in zip(
    jax.tree.leaves(state.params), jax.tree.leaves(shapes.params), strict=True
  ):
    assert leaf.sharding == wanted.sharding
  return state


def same(found: Any, wanted: Any) -> None:
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), wanted)


@pytest.mark.parametrize("to", ["facebook", "transformers"])
def test_pre_training_goes_on(to: str, weights):
  path = weights("mae", to)
  config = tiny.config(init_from=str(path))
  wanted = sample_checkpoints.params("mae", config)
  same(initial(config).params, wanted)


@pytest.mark.parametrize("to", ["facebook", slow("transformers"), "timm"])
def test_pre_training_starts_from_an_encoder(to: str, weights, capsys):
  path = weights("encoder", to)
  config = tiny.config(init_from=str(path))
  params = initial(config).params["model"]
  before = sample_checkpoints.config("encoder", data=DATA, model=MODEL)
  wanted = sample_checkpoints.params("encoder", before)["model"]["encoder"]
  same(dict(params["encoder"]), wanted)
  new = initial(dataclasses.replace(config, init_from="")).params["model"]
  same(params["decoder"], jax.device_get(new["decoder"]))
  told = capsys.readouterr().err
  assert f"{path} has no decoder: this run starts with a new decoder\n" in told


@pytest.mark.slow
def test_an_encoder_gets_a_target_fitted_to_the_images(weights):
  path = weights("encoder", "facebook")
  pca = {"target": "pca", "pca_components": 3}
  found, new = (
    initial(tiny.config(init_from=start, objective=pca)).params["fitted"]
    for start in (str(path), "")
  )
  same(found, jax.device_get(new))
  assert np.any(found["target"]["basis"])


@pytest.mark.slow
def test_pre_training_starts_from_a_classifier(tmp_path, capsys):
  """Mean pooling has no final norm, which starts as the identity."""
  path = digits_weights(tmp_path, "mean", "facebook")
  config = tiny.config(init_from=str(path))
  with pytest.raises(ConfigError, match="positions other than the sin-cos"):
    initial(config)
  content = torch.load(path, weights_only=False)
  table = pos_embed.with_cls(pos_embed.sincos_2d((4, 4), 32))
  content["model"]["pos_embed"] = torch.from_numpy(np.array(table))
  torch.save(content, path)
  encoder = dict(initial(config).params["model"]["encoder"])
  norm = jax.device_get(encoder.pop("norm"))
  before = sample_checkpoints.config("mean", data=DATA, model=MODEL)
  wanted = dict(sample_checkpoints.params("mean", before)["model"]["encoder"])
  del wanted["pos_embed"]
  same(encoder, wanted)
  np.testing.assert_array_equal(norm["scale"], 1)
  np.testing.assert_array_equal(norm["bias"], 0)
  told = capsys.readouterr().err
  assert "a new decoder and final norm of the encoder" in told


@pytest.mark.parametrize("kind", [slow("encoder"), "mae", slow("cls")])
@pytest.mark.parametrize("to", ["facebook", slow("transformers"), slow("timm")])
def test_fine_tuning_and_probes_start(kind: str, to: str, weights):
  path = weights(kind, to)
  before = sample_checkpoints.config(kind, data=DATA, model=MODEL)
  encoder = dict(sample_checkpoints.params(kind, before)["model"]["encoder"])
  for task in ("finetune", "linprobe"):
    pooling = {"classify": {"pooling": "cls"}}
    state = initial(tiny.config(task=task, init_from=str(path), **pooling))
    found = jax.device_get(state.params["model"]["encoder"])
    if kind != "cls":
      encoder["pos_embed"] = found["pos_embed"]
      assert np.abs(found["pos_embed"]).max() > 0.9
    same(found, encoder)


@pytest.mark.slow
def test_files_as_published_need_no_flag(tmp_path: pathlib.Path):
  """Heads, target and pixel normalization come from the config."""
  model = facebook_model.Autoencoder(
    patch=2,
    channels=1,
    width=32,
    hidden=64,
    decoder_width=16,
    decoder_depth=1,
    decoder_hidden=64,
  )
  test_refusals.test_outputs.set_tables(facebook_model.randomize(model))
  torch.save({"model": model.state_dict()}, tmp_path / "x.pth")
  config = tiny.config(init_from=str(tmp_path / "x.pth"))
  found = jax.device_get(initial(config).params["model"])
  kernel = model.state_dict()["decoder_pred.weight"].numpy().T
  np.testing.assert_array_equal(found["decoder"]["pred"]["kernel"], kernel)
  # Nor in a comparison, whose members all start from the encoder.
  config = tiny.config(
    task="label_efficiency",
    label_efficiency=LabelEfficiencyConfig(shots=(2,), seeds=1),
    init_from=str(tmp_path / "x.pth"),
    eval=EvalConfig(shots=(), images=0),
  )
  mesh = runs.devices_mesh()
  task, data = runs.open_task(config, mesh)
  with jax.set_mesh(mesh):
    state = loop.initial_state(task, data, config, mesh, "/nowhere")
  token = state.params["model"]["encoder"]["cls_token"][0]
  np.testing.assert_array_equal(token, model.state_dict()["cls_token"])


@pytest.mark.slow
@pytest.mark.parametrize("to", ["facebook", "jax"])
def test_another_normalization_gives_a_warning(
  to: str, weights, capsys: pytest.CaptureFixture
):
  """Another normalization is allowed, but rarely intended."""
  path = str(weights("mae", to))
  for task in ("pretrain", "finetune"):
    initial(tiny.config(task=task, init_from=path))
    data = {"mean": (0.5,), "std": (0.4,)}
    told = "was trained with pixels of mean (0.3,) and std (0.4,), and this run"
    before = capsys.readouterr()
    assert told not in before.err + before.out
    initial(tiny.config(task=task, init_from=path, data=data))
    after = capsys.readouterr()
    assert told in after.err + after.out
    assert (
      "--config.data.mean=0.3 --config.data.std=0.4" in after.err + after.out
    )


@pytest.mark.slow
def test_another_image_size_gives_a_warning(weights, capsys):
  path = str(weights("encoder", "jax"))
  classify = {"task": "finetune", "init_from": path}
  initial(tiny.config(**classify))
  told = "was trained with images of"
  assert told not in capsys.readouterr().err
  initial(tiny.config(**classify, data={"image_size": (12, 8)}))
  assert (
    f"{path} {told} 8 x 8 pixels, and this run has 12 x 8 pixels: 24 tokens "
    "an image instead of 16; if that is a mistake, set "
    "--config.data.image_size=8,8\n"
  ) in capsys.readouterr().err


@pytest.mark.slow
def test_another_objective_gives_a_warning(
  weights, capsys: pytest.CaptureFixture
):
  path = str(weights("mae", "jax"))
  initial(tiny.config(init_from=path))
  assert "was trained with objective" not in capsys.readouterr().err
  objective = {"target": "raw", "masked_input": "noise"}
  initial(tiny.config(init_from=path, objective=objective))
  told = capsys.readouterr().err
  for old in ("target=norm_pix", "masked_input=dropped"):
    assert f"was trained with objective.{old}, and this run uses" in told
    assert f"set --config.objective.{old}" in told


@pytest.mark.parametrize(
  ("kind", "changes", "text"),
  [
    ("mae", {"model": {"heads": 8}}, "has model.heads=4, not 8: set --config"),
    ("mae", {"model": {"decoder_heads": 2}}, "has model.decoder_heads=4, not"),
    ("mae", {"model": {"norm_eps": 1e-5}}, "has model.norm_eps=1e-06, not"),
    ("mae", {"model": {"activation": "relu"}}, "has model.activation=gelu, no"),
    (
      "mae",
      {"model": {"depth": 1}},
      "has model.depth=2, not 1: set --config.model.depth=2",
    ),
    ("mae", {"model": {"decoder_width": 32}}, "has model.decoder_width=16 "),
  ],
)
@pytest.mark.parametrize("to", [slow("facebook"), "jax"])
def test_what_does_not_fit_pre_training(kind, changes, text, to, weights):
  path = weights(kind, to)
  with pytest.raises(ConfigError, match=text) as caught:
    initial(tiny.config(init_from=str(path), **changes))
  assert "\n" not in str(caught.value)


def test_pre_training_has_fixed_positions(tmp_path: pathlib.Path, capsys):
  """Position tables must equal sin-cos, except for rounding."""
  path = digits_weights(tmp_path, "mae", "facebook")
  content = torch.load(path, weights_only=False)
  table = content["model"]["decoder_pos_embed"]
  config = tiny.config(init_from=str(path))
  table += 1e-7
  torch.save(content, path)
  assert "pos_embed" not in initial(config).params["model"]["decoder"]
  table += 1e-3
  torch.save(content, path)
  text = "its decoder has positions other than the sin-cos table, .*fine-tune"
  with pytest.raises(ConfigError, match=text):
    initial(config)
  assert "kept" not in capsys.readouterr().err


def test_sharded_and_whole_are_the_same(weights):
  path = weights("cls", "timm")
  one, run = conversion.load_any(path, runs.devices_mesh())
  eight, again = conversion.load_any(path, runs.devices_mesh(8, fsdp=4))
  same(eight, jax.device_get(one))
  assert run == again
  kernel = eight["model"]["encoder"]["stack"]["blocks"]["mlp"]["fc1"]["kernel"]
  assert kernel.addressable_shards[0].data.size == kernel.size // 4


@pytest.mark.parametrize("to", ["facebook", slow("timm")])
def test_features_of_a_file(to: str, tmp_path: pathlib.Path):
  path = digits_weights(tmp_path, "cls", to)
  mesh = runs.devices_mesh()
  pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
  for settings in ({}, {"layer": 1, "pool": "all"}, {"image_size": (12, 8)}):
    size = settings.get("image_size", (8, 8))
    x = np.resize(pixels, (3, *size, 1))
    ours = feature_extractor.from_checkpoint(
      tmp_path / "start", mesh, **settings
    )
    theirs = feature_extractor.from_checkpoint(path, mesh, **settings)
    np.testing.assert_array_equal(
      theirs.apply(theirs.params, x), ours.apply(ours.params, x)
    )


def test_features_need_no_target(tmp_path: pathlib.Path):
  """An unused decoder needs no flags."""
  model = facebook_model.randomize(facebook_model.MODELS["mae"]())
  torch.save({"model": model.state_dict()}, tmp_path / "x.pth")
  hints = conversion.ModelOverrides(heads=4, no_decoder=True)
  params, run = conversion.load_any(
    tmp_path / "x.pth", runs.devices_mesh(), hints
  )
  assert params["model"].keys() == {"encoder"}
  assert run.config.task == "pretrain"


def test_classes_without_names_go_by_number(tmp_path: pathlib.Path):
  known = conversion.default_class_names(3)
  names = ("eel", "fox", "gnu")
  assert class_matching.match_classes(names, known).tolist() == [0, 1, 2]
  with pytest.raises(ConfigError, match="such as 'eel', are not"):
    class_matching.match_classes(names[:2], known)
  with pytest.raises(ConfigError, match="more than once, such as"):
    class_matching.match_classes(("crane",), ("crane", "eel", "crane"))
  # Numbers are names like any others.
  digits_names = tuple("0123456789")
  assert class_matching.match_classes(("7", "3"), digits_names).tolist() == [
    7,
    3,
  ]


def test_a_missing_decoder_is_no_surprise(weights, capsys):
  """Fine-tuning takes the encoder of an autoencoder: a note, not a warning."""
  conversion.load_any(
    weights("mae", "facebook"),
    runs.devices_mesh(),
    conversion.ModelOverrides(no_decoder=True),
  )
  found = capsys.readouterr()
  assert "not needed: tensors outside the encoder" in found.out
  assert "warning" not in found.err


def test_files_are_known_by_their_content(weights, tmp_path):
  for to, name in (
    ("facebook", "a.pth.tar"),
    ("facebook", "a.ckpt"),
    ("facebook", "a"),
    ("facebook", "a.safetensors"),
    ("timm", "b"),
    ("timm", "b.bin"),
  ):
    path = shutil.copy(weights("encoder", to), tmp_path / name)
    assert load.open_weights(path).weight_format == to
  (tmp_path / "c").write_text("no weights")
  for name, text in (
    ("c", "c is not a file of weights"),
    ("d.pth.tar", "there is no such file"),
  ):
    with pytest.raises(ConfigError, match=text):
      load.open_weights(tmp_path / name)


def test_class_names_are_given(tmp_path: pathlib.Path):
  model = facebook_model.randomize(facebook_model.MODELS["mean"]())
  torch.save({"model": model.state_dict()}, tmp_path / "x.pth")
  names = tmp_path / "names.txt"
  names.write_text("\n".join(sample_checkpoints.CLASSES))
  out = tmp_path / "out"
  convert.convert(
    str(tmp_path / "x.pth"),
    str(out),
    to="jax",
    heads=4,
    class_names=str(names),
  )
  assert (
    checkpoints.read_metadata(out).class_names == sample_checkpoints.CLASSES
  )
  names.write_text("a\nb\na\nc\nd")
  with pytest.raises(ConfigError, match="'a' for the labels 0 and 2"):
    convert.convert(
      str(tmp_path / "x.pth"), str(tmp_path / "y"), to="jax", heads=4,
      class_names=str(names),
    )  # fmt: skip
  names.write_text("a\nb")
  for kind, text, flags in (
    ("mean", "has 2 lines, but the head has 5", {"heads": 4}),
    ("mae", "no head", test_refusals.HEADS | {"target": "raw"}),
  ):
    model = facebook_model.MODELS[kind]()
    torch.save({"model": model.state_dict()}, tmp_path / "y.pth")
    with pytest.raises(ConfigError, match=text):
      convert.convert(
        str(tmp_path / "y.pth"),
        str(tmp_path / "z"),
        to="jax",
        class_names=str(names),
        **flags,
      )
  names.write_text("a\n\nb\nc\nd\n")
  with pytest.raises(ConfigError, match="has nothing in line 2: "):
    convert.convert(
      str(tmp_path / "x.pth"),
      str(tmp_path / "z"),
      to="jax",
      heads=4,
      class_names=str(names),
    )


def test_a_checkpoint_is_no_workdir(tmp_path: pathlib.Path):
  sample_checkpoints.save(tmp_path / "a", "mae", data=DATA, model=MODEL)
  config = tiny.config(train={"length": "3 steps"})
  with pytest.raises(ConfigError, match="is a checkpoint, not the"):
    runs.train(config, tmp_path / "a")


@pytest.mark.slow
def test_the_programs(tmp_path: pathlib.Path):
  """Runs convert, main (fine-tune, evaluate) and predict as commands."""
  theirs = digits_weights(tmp_path, "mae", "transformers")
  done = command("convert", "--inspect", theirs)
  assert done.returncode == 0, done.stderr
  assert "encoder and decoder" in done.stdout
  settings = [
    *(f"--config.model.{name}={value}" for name, value in MODEL.items()),
    "--config.model.variant=Ti/2",
    "--config.data.mean=(0.3,)",
    "--config.data.std=(0.4,)",
    "--config.data.batch_size=32",
    "--config.train.length=2 steps",
    "--config.optim.warmup=0 steps",
  ]
  recipe = tmp_path / "recipe.py"
  recipe.write_text(
    "import runpy\n"
    "from mae_jax import config as c\n"
    "def get_config(arg=None):\n"
    "  found = runpy.run_path('configs/digits_finetune.py')['get_config']()\n"
    "  found.task = 'finetune'\n"
    "  return found\n"
  )
  tuned = tmp_path / "tuned"
  done = command(
    "train",
    f"--config={recipe}",
    f"--workdir={tuned}",
    f"--config.init_from={theirs}",
    *settings,
  )
  assert done.returncode == 0, done.stderr
  file = tmp_path / "tuned.pth"
  done = command("convert", "--to=facebook", tuned, file)
  assert done.returncode == 0, done.stderr
  results = []
  for number, path in enumerate((tuned, file)):
    where = tmp_path / f"eval{number}"
    done = command(
      "train",
      f"--config={recipe}",
      f"--workdir={where}",
      f"--config.init_from={path}",
      "--config.task=evaluate",
      *settings,
    )
    assert done.returncode == 0, done.stderr
    results.append(json.loads((where / "evaluation.json").read_text()))
  assert results[0]["scalars"] == results[1]["scalars"]
  photos = write_images(tmp_path / "photos", ["a.png", "b.png"])
  done = command("predict", f"--checkpoint={file}", f"--images={photos}")
  assert done.returncode == 0, done.stderr
  assert "a.png: " in done.stdout
