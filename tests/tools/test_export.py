"""Tests that exported programs equal the network."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import os
import re
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from etils import epath

from bench import weights as bench
from mae_jax.config import ClassifyConfig
from mae_jax.models import classifiers
from mae_jax.tools import feature_extractor
from mae_jax.tools.export import (
  command,
  manifest,
  quantize,
  savedmodel,
  stablehlo,
  verify,
)
from mae_jax.utils import atomic_write
from mae_jax.utils.errors import ConfigError, TrainingError
from tests.helpers import disks, runs, tiny
from tests.helpers.commands import command as run_tool
from tests.helpers.params import slow
from tests.test_readme import ROOT

CLASSES = tuple("abcdefghij")
# A batch size that is neither traced nor compared elsewhere.
IMAGES = {
  size: np.random.default_rng(size).integers(0, 256, (size, 8, 8, 1), np.uint8)
  for size in (1, 5)
}
# The code that the documentation shows.
(LOADING,) = re.findall(
  r"```python\n(import jax\n.*?)```",
  (ROOT / "docs" / "guides" / "serve.md").read_text(),
  re.S,
)


def save(config, workdir, params):
  """Saves a checkpoint of an untrained network."""
  names = () if config.task == "pretrain" else CLASSES
  return runs.save(config, workdir, params, names)


def random_classifier(config):
  """Returns a classifier and random parameters for all of its arrays."""
  built = classifiers.CLASSIFIERS[config.task](config, len(CLASSES), "cpu")
  params = tiny.random_params(jax.eval_shape(built.init, jax.random.key(0)))
  if classifiers.STATS in params:
    var = params[classifiers.STATS]["var"]
    params[classifiers.STATS]["var"] = np.abs(var) + 1
  if classifiers.AVERAGED in params:
    params[classifiers.AVERAGED] = tiny.random_params(
      params[classifiers.AVERAGED], seed=1
    )
  return built, params


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
  return runs.pretrained(tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
  """Network, parameters and workdir, with averages and frozen blocks."""
  settings = ClassifyConfig(ema=0.5, trainable="mlp")
  built, params = random_classifier(
    tiny.config(task="finetune", classify=settings)
  )
  workdir = tmp_path_factory.mktemp("finetuned")
  return built, params, save(built.config, workdir, params)


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
  settings = ClassifyConfig(pooling="all")
  built, params = random_classifier(
    tiny.config(task="linprobe", classify=settings)
  )
  workdir = tmp_path_factory.mktemp("probed")
  return built, params, save(built.config, workdir, params)


def rounded(params, kind):
  """Rounds parameters to a kind of weights, in NumPy."""

  def one(path, leaf):
    leaf = np.asarray(leaf)
    if path[-1].key != "kernel" or kind == "float32":
      return leaf
    if kind == "bfloat16":
      return leaf.astype(jnp.bfloat16).astype(np.float32)
    step = np.abs(leaf).max(axis=-2, keepdims=True) / np.float32(127)
    return np.rint(leaf / step).astype(np.int8) * step

  return jax.tree_util.tree_map_with_path(one, params)


@pytest.fixture(scope="module")
def exports(pretrained, finetuned, probed, tmp_path_factory):
  """Makes an export by name, once: a folder, and the function of images."""
  root = tmp_path_factory.mktemp("exports")

  def logits(network, kind="float32"):
    built, params, _ = network
    params = rounded(params, kind)
    return jax.jit(lambda images: built.logits(params, images))

  def features(**settings):
    found = feature_extractor.from_checkpoint(
      pretrained, runs.devices_mesh(), **settings
    )
    return lambda images: found.apply(found.params, images)

  layer = {"pool": "all", "layer": 1, "image_size": (8, 4)}
  int8 = {"format": "savedmodel", "weights": "int8"}
  wanted = {
    **{
      kind: (
        finetuned,
        {"weights": kind},
        lambda kind=kind: logits(finetuned, kind),
      )
      for kind in quantize.KINDS
    },
    "probe": (probed, {}, lambda: logits(probed)),
    "layer": ((pretrained,), layer, lambda: features(**layer)),
    "tf": (finetuned, {"format": "savedmodel"}, lambda: logits(finetuned)),
    "tf_int8": (finetuned, int8, lambda: logits(finetuned, "int8")),
  }

  @functools.cache
  def export(name):
    (*_, workdir), settings, function = wanted[name]
    folder = root / name / "served"
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(verify, "BATCHES", (3,))  # other kinds are compared below
      command.write(str(workdir), str(folder), **settings)
    return folder, function()

  return export


def shown(folder):
  """Returns IMAGES in the size of an export."""
  facts = json.loads((folder / manifest.NAME).read_text())
  height, width = facts["input"]["shape"][1:3]
  return {size: each[:, :height, :width] for size, each in IMAGES.items()}


def close(found, wanted):
  wanted = np.asarray(wanted)
  assert found.dtype == np.float32
  assert found.shape == wanted.shape
  np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.slow
@pytest.mark.parametrize(
  "names", [("float32",), slow(("bfloat16", "int8", "probe", "layer"))]
)
def test_stablehlo_equals_the_network_with_only_jax_installed(exports, names):
  """Runs the code of the documentation in another process."""
  folders = {name: exports(name) for name in names}
  for folder, _ in folders.values():
    for size, images in shown(folder).items():
      np.save(folder.parent / f"{size}.npy", images)
  script = f"""
import os, sys
for name in ("mae_jax", "flax", "torch", "tensorflow", "orbax", "etils"):
  sys.modules[name] = None  # as if it were not installed
import numpy as np
for folder in {[str(folder.parent) for folder, _ in folders.values()]}:
  os.chdir(folder)
  for size in {list(IMAGES)}:
    images = np.load(f"{{size}}.npy")
    exec({LOADING!r})
    np.save(f"{{size}}_out.npy", outputs)
"""
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", script],
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    cwd=folders[names[0]][0],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  for folder, function in folders.values():
    for size, images in shown(folder).items():
      close(np.load(folder.parent / f"{size}_out.npy"), function(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tf", "tf_int8"])
def test_a_saved_model_equals_the_network(exports, name):
  folder, function = exports(name)
  model = tf.saved_model.load(str(folder))
  serve = model.signatures["serving_default"]
  ((), inputs), outputs = serve.structured_input_signature, None
  assert inputs["images"].shape.as_list() == [None, 8, 8, 1]
  assert inputs["images"].dtype == tf.uint8
  outputs = serve.structured_outputs["logits"]
  assert outputs.shape.as_list() == [None, len(CLASSES)]
  for images in IMAGES.values():
    close(serve(images=tf.constant(images))["logits"].numpy(), function(images))


@pytest.mark.slow
def test_a_saved_model_stores_int8_weights_as_int8(exports):
  model = tf.saved_model.load(str(exports("tf_int8")[0]))
  kernels = {
    name: value.dtype
    for name, value in model.weights.items()
    if name.endswith("kernel")
  }
  assert len(kernels) == 6
  assert set(kernels.values()) == {tf.int8}


def stored_bytes(folder):
  files = [each for each in folder.rglob("*") if "ariables.data" in each.name]
  files += folder.glob("*.safetensors")
  return sum(each.stat().st_size for each in files)


@pytest.mark.slow
def test_smaller_weights_make_smaller_files(exports):
  """Kernels take two bytes or one per value, other parameters four."""
  params = exports("float32")[0] / stablehlo.WEIGHTS
  sizes = {"kernel": 0, "other": 0}
  channels = 0
  for name, value in safetensors.numpy.load_file(params).items():
    is_kernel = name.endswith("/kernel")
    sizes["kernel" if is_kernel else "other"] += value.size
    channels += value.size // value.shape[-2] if is_kernel else 0
  header = 6000
  for name, wanted in (
    ("float32", 4 * sizes["kernel"]),
    ("tf", 4 * sizes["kernel"]),
    ("bfloat16", 2 * sizes["kernel"]),
    ("int8", sizes["kernel"] + 4 * channels),
    ("tf_int8", sizes["kernel"] + 4 * channels),
  ):
    extra = stored_bytes(exports(name)[0]) - wanted - 4 * sizes["other"]
    assert 0 <= extra < header, name


def test_one_program_serves_all_platforms_and_batch_sizes(exports):
  folder = exports("int8")[0]
  data = (folder / stablehlo.PROGRAM).read_bytes()
  program = jax.export.deserialize(bytearray(data))
  assert program.platforms == ("cpu", "cuda", "tpu")
  assert not program.disabled_safety_checks
  *_, images = program.in_avals
  assert jax.export.is_symbolic_dim(images.shape[0])
  # Operations of a single platform would be custom calls.
  calls = set(re.findall(r"custom_call @(\w+)", program.mlir_module()))
  assert calls <= {"shape_assertion"}
  stored = safetensors.numpy.load_file(folder / stablehlo.WEIGHTS)
  assert len(program.module_kept_var_idx) == len(stored) + 1  # no constants
  # A server with another user can read the files.
  modes = {each.stat().st_mode for each in folder.iterdir()}
  assert len(modes) == 1


@pytest.mark.slow
def test_the_manifest(exports, finetuned):
  facts = json.loads((exports("int8")[0] / manifest.NAME).read_text())
  assert facts["input"]["shape"] == ["batch", 8, 8, 1]
  assert facts["input"]["dtype"] == "uint8"
  assert facts["output"]["name"] == "logits"
  assert facts["output"]["shape"] == ["batch", len(CLASSES)]
  assert facts["class_names"] == list(CLASSES)
  assert facts["checkpoint"] == str(finetuned[2] / "checkpoints" / "1")
  assert facts["normalized_inside"] == {"mean": [0.3], "std": [0.4]}
  assert facts["preparation"]["background"] == "white"
  assert "pixels = np.asarray" in facts["preparation"]["python"][-1]
  assert facts["platforms"] == ["cpu", "cuda", "tpu"]
  assert facts["versions"]["jax"] == jax.__version__
  assert 0 < facts["rounding_of_weights"] < 1
  layer = json.loads((exports("layer")[0] / manifest.NAME).read_text())
  assert (layer["pool"], layer["layer"]) == ("all", 1)
  assert layer["output"]["shape"] == ["batch", 1 + 4 * 2, 32]
  assert "class_names" not in layer


@pytest.mark.slow
def test_features_of_a_classifier_and_another_dtype(
  finetuned, tmp_path, monkeypatch
):
  *_, workdir = finetuned
  out = tmp_path / "out"
  monkeypatch.setattr(verify, "BATCHES", (5,))
  command.write(str(workdir), str(out), what="features", dtype="bfloat16")
  found = stablehlo.load(epath.Path(out))(IMAGES[5])
  exact = feature_extractor.from_checkpoint(workdir, runs.devices_mesh())
  wanted = exact.apply(exact.params, IMAGES[5])
  apart = np.abs(found - wanted).max() / np.abs(wanted).max()
  assert 1e-4 < apart < 0.03  # they are rounded


def test_an_unknown_kind_of_weights_is_refused():
  with pytest.raises(ValueError, match="kind='int4' is not known"):
    quantize.store({}, "int4")


def test_quantization_is_by_channel_and_layer():
  random = np.random.default_rng(0)
  kernel = random.normal(size=(3, 8, 5)).astype(np.float32)
  kernel *= 10.0 ** np.arange(15).reshape(3, 1, 5) / 1e7
  kernel[1, :, 2] = 0
  steps, scale = quantize.quantize_kernel(kernel)
  assert steps.dtype == jnp.int8
  assert scale.shape == (3, 1, 5)
  largest = np.abs(kernel).max(axis=1)
  assert np.abs(steps).max(axis=1)[largest > 0].tolist() == [127] * 14
  error = np.abs(np.asarray(steps, np.float32) * scale - kernel)
  assert (error <= 0.5001 * np.asarray(scale)).all()
  assert error[1, :, 2].max() == 0


@pytest.mark.slow
def test_only_an_earlier_export_is_replaced(pretrained, tmp_path):
  out = tmp_path / "out"
  out.mkdir()  # empty
  command.write(str(pretrained), str(out))
  before = (out / stablehlo.WEIGHTS).stat().st_size
  command.write(str(pretrained), str(out), weights="int8")
  assert (out / stablehlo.WEIGHTS).stat().st_size < before
  assert os.listdir(tmp_path) == ["out"]
  (out / "notes.txt").write_text("mine")
  with pytest.raises(ConfigError, match="out has other files"):
    command.write(str(pretrained), str(out))
  assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, None])
def test_a_failed_export_keeps_the_old_one(
  pretrained, tmp_path, monkeypatch, error
):
  """Includes an export that differs from the modelwork when it is loaded."""
  out = tmp_path / "out"
  command.write(str(pretrained), str(out))
  before = {each.name: each.read_bytes() for each in out.iterdir()}
  right = stablehlo.load

  def load(folder):
    assert len(os.listdir(tmp_path)) == 2
    if error:
      raise error
    serve = right(folder)
    return lambda images: serve(images) + 1e-3

  monkeypatch.setattr(stablehlo, "load", load)
  expected = error or TrainingError
  with pytest.raises(
    expected, match=None if error else "differs from the model"
  ):
    command.write(str(pretrained), str(out), weights="int8")
  assert {each.name: each.read_bytes() for each in out.iterdir()} == before
  assert os.listdir(tmp_path) == ["out"]


def test_an_export_with_values_that_are_not_finite_fails():
  wanted = [np.ones((1, 2), np.float32)]
  assert verify.check(wanted, wanted, "float32") == 0
  for bad in (np.nan, np.inf):
    with pytest.raises(TrainingError, match="differs from the model"):
      verify.check([wanted[0] * bad], [wanted[0] * bad], "float32")


def test_a_failed_swap_of_folders_is_undone(tmp_path, monkeypatch):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "old").write_text("")
  rename = type(epath.Path(tmp_path)).rename

  def fail(self, target):
    if self.name.endswith(".tmp"):
      raise OSError(28, "No space left on device", str(target))
    return rename(self, target)

  monkeypatch.setattr(type(epath.Path(tmp_path)), "rename", fail)
  with (
    pytest.raises(OSError, match="No space"),
    atomic_write.atomic_folder(str(tmp_path / "out"), lambda _: True),
  ):
    pass
  assert os.listdir(tmp_path) == ["out"]
  assert os.listdir(tmp_path / "out") == ["old"]


@pytest.mark.parametrize("form", ["stablehlo", "savedmodel", slow("onnx")])
def test_a_disk_that_fills_up_is_named(pretrained, tmp_path, monkeypatch, form):
  module = importlib.import_module(f"mae_jax.tools.export.{form}")
  whole = module.write

  def write(*args):
    with disks.full_disk(10_000):
      return whole(*args)

  monkeypatch.setattr(module, "write", write)
  out = tmp_path / "out"
  with pytest.raises(OSError, match="large") as caught:
    command.write(str(pretrained), str(out), format=form)
  assert caught.value.filename.startswith(str(tmp_path))
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
  ("changes", "text"),
  [
    ({"format": "tf"}, "--format='tf' is not known: .*onnx, savedmodel, stab"),
    ({"weights": "int4"}, "--weights='int4' is not known: .*int8"),
    ({"what": "encoder"}, "--what='encoder' is not known: .*features"),
    ({"dtype": "float16"}, "--dtype='float16' is not known: .*bfloat16"),
    (
      {"pool": "max"},
      "--pool='max' is not known: known are all, cls, grid, mean",
    ),
    ({"checkpoint": "nowhere"}, "there is no checkpoint in nowhere: name a"),
    ({"what": "classifier"}, "--what=classifier: .* has no head: .*features"),
    ({"layer": 3}, "--layer=3: the encoder has blocks 1 to 2"),
    ({"image_size": (9, 8)}, "--image_size=9 is not a multiple of model.patc"),
    (
      {"checkpoint": "finetuned", "layer": 1},
      "--layer=1 applies to features, ",
    ),
    (
      {"checkpoint": "finetuned", "pool": "cls"},
      "--pool=cls applies to features, .* add --what=features",
    ),
    (
      {"out": "{tmp}/file"},
      "file is a file, and was not changed: name a new fold",
    ),
    (
      {"out": "{tmp}"},
      "has other files, and was not changed: name a new folder",
    ),
    ({"out": "/proc/x/y"}, "the folder of --out=/proc/x cannot be made"),
    (
      {"out": "/proc/x"},
      r"/proc/x cannot be written \(.*name a folder in a writ",
    ),
    (
      {"out": "gs://bucket/x"},
      "is in a bucket, .* name a folder on a disk, and",
    ),
  ],
)
def test_mistakes(pretrained, finetuned, tmp_path, changes, text):
  (tmp_path / "file").write_text("mine")
  settings = {"checkpoint": str(pretrained), "out": "{tmp}/out"} | changes
  if settings["checkpoint"] == "finetuned":
    settings["checkpoint"] = str(finetuned[2])
  settings["out"] = settings["out"].format(tmp=tmp_path)
  with pytest.raises(ConfigError, match=text) as caught:
    command.write(**settings)
  assert "\n" not in str(caught.value)
  assert os.listdir(tmp_path) == ["file"]


@pytest.mark.slow
def test_the_command(finetuned, tmp_path):
  """Exports a saved model without any output of TensorFlow."""
  args = f"--checkpoint={finetuned[2]}", f"--out={tmp_path}/out"
  done = run_tool("export", *args, "--format=savedmodel", "--weights=bfloat16")
  assert done.returncode == 0, done.stderr
  assert done.stderr == ""
  size, what, read, rounding = done.stdout.splitlines()
  assert re.match(rf"{tmp_path}/out: [\d.]+ MB, in [\d.]+ s", size)
  assert what.startswith("logits [batch, 10], bfloat16 weights of 0.0")
  assert "largest difference from the model's outputs: " in read
  assert "largest difference from float32 weights: " in rounding


@pytest.mark.slow
def test_only_saved_models_need_tensorflow():
  code = (
    "import sys, mae_jax.tools.export.command; "
    "print('tensorflow' in sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True
  )
  assert done.stdout == b"False\n"
  assert savedmodel.SIGNATURE == "serving_default"


@pytest.mark.slow
def test_measured_accuracy_equals_the_networks(finetuned, tmp_path):
  """Compares with the network on the digits, and checks the table."""
  built, params, _ = finetuned
  data = dataclasses.replace(built.config.data, shots=0)
  workdir = save(dataclasses.replace(built.config, data=data), tmp_path, params)
  exact, small = (bench.measure(str(workdir), x) for x in ("float32", "int8"))
  logits = built.logits(params, digits := held_out_digits())
  close(exact.logits, logits)
  assert len(exact.labels) == len(digits) == 360
  assert exact.top1 == (np.asarray(logits).argmax(1) == exact.labels).mean()
  assert small.size < exact.size / 2
  wrong = bench.Measured(7000, -exact.logits, exact.labels)
  sizes = {"float32": 4_000_000, "int8": 1_000_000}
  *_, first, second = bench.rows({"float32": [exact], "int8": [wrong]}, sizes)
  top1 = 100 * exact.top1
  assert f"| {top1:.2f} ± 0.00 % | +0.00 % | 0 of 360 | 0.000 | 4 MB |" in first
  assert "| int8 | 7 kB |" in second
  assert f"| {100 * wrong.top1 - top1:+.2f} % |" in second
  assert f"of 360 | {2 * np.abs(exact.logits).max():.3f} | 1 MB |" in second


def held_out_digits():
  from mae_jax.data import pipeline
  from mae_jax.data.bad_images import BadImages
  from mae_jax.data.sources import open_source

  data = tiny.config().data
  source = open_source(data, "eval")
  batches = pipeline.eval_batches(
    source,
    data,
    batch_size=360,
    rows=np.arange(360),
    unreadable=BadImages(),
  )
  return next(iter(batches))["image"]
