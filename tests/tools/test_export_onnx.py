"""Tests exports to ONNX in ONNX Runtime, and exported autoencoders."""

from __future__ import annotations

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from etils import epath

from mae_jax.config import ClassifyConfig
from mae_jax.evals import reconstruction
from mae_jax.models import patchify
from mae_jax.tools import feature_extractor, reconstructor
from mae_jax.tools.export import (
  command,
  manifest,
  onnx_translation,
  savedmodel,
  stablehlo,
  verify,
)
from mae_jax.tools.export import onnx as onnx_format
from mae_jax.utils import errors
from mae_jax.utils.errors import ConfigError
from tests.helpers import runs, tiny
from tests.helpers.params import slow
from tests.test_readme import ROOT
from tests.tools.test_export import (
  CLASSES,
  IMAGES,
  close,
  random_classifier,
  rounded,
  save,
)

# The code that the documentation shows.
(LOADING,) = re.findall(
  r"```python\n(import onnxruntime\n.*?)```",
  (ROOT / "docs" / "guides" / "serve.md").read_text(),
  re.S,
)
FORMS = {"onnx": onnx_format, "stablehlo": stablehlo, "savedmodel": savedmodel}


def run(session, inputs):
  names = [each.name for each in session.get_inputs()]
  (out,) = session.run(None, dict(zip(names, inputs, strict=True)))
  return out


def load(folder):
  """Opens a file by the code of the documentation."""
  opening, _ = LOADING.replace("served_onnx", str(folder)).split("(outputs,)")
  scope = {}
  exec(opening, scope)
  return scope["session"]


@pytest.fixture
def one_batch(monkeypatch):
  """Lets an export compare one batch; tests compare others."""
  monkeypatch.setattr(verify, "BATCHES", (3,))


FUNCTIONS = {
  "broadcast": lambda w, x: x * w["b"] + jnp.zeros((x.shape[0], 1)),
  "stacked": lambda w, x: jax.lax.scan(
    lambda c, a: (jnp.tanh(c @ a), None), x, w["k"]
  )[0],
  "cut": lambda w, x: jnp.concatenate([x[:, 1:], x[:, :1], x[:, 2:4]], axis=1),
  "picked": lambda w, x: x[:, 2] - x.max(axis=1),
  "chosen": lambda w, x: jnp.where(x > 0, x**3, jnp.clip(-x, 0.1, 0.5)),
  "activations": lambda w, x: (
    jax.nn.gelu(x) + jax.nn.silu(x) + jax.nn.relu(x) + jax.lax.erf(x)
  ),
  "products": lambda w, x: jnp.einsum(
    "bhnd,bhmd->bhnm", *2 * [x.reshape(-1, 2, 2, 1)]
  ),
  "constant": lambda w, x: jnp.broadcast_to(w["b"], x.shape),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_graph_equals_its_function(name):
  random = np.random.default_rng(0)
  weights = {
    "b": jnp.asarray(random.normal(size=4), jnp.float32),
    "k": jnp.asarray(random.normal(size=(2, 4, 4)), jnp.float32),
  }
  inputs = {"x": jax.ShapeDtypeStruct((4,), jnp.float32)}
  model = onnx_translation.build(FUNCTIONS[name], weights, inputs, "y")
  onnx.checker.check_model(model, full_check=True)
  session = onnxruntime.InferenceSession(model.SerializeToString())
  for batch in (1, 5):
    x = random.normal(size=(batch, 4)).astype(np.float32)
    close(run(session, [x]), FUNCTIONS[name](weights, x))


@pytest.mark.parametrize(
  ("function", "text"),
  [
    (lambda w, x: jnp.sort(x, axis=1), "computes with sort, for which"),
    (lambda w, x: jax.lax.slice_in_dim(x, 0, 4, 2, 1), "slices with steps"),
    (
      lambda w, x: jnp.take_along_axis(x, (x > 0).astype(int), axis=1),
      "gathers at several indices, .* use --format=stablehlo",
    ),
    (lambda w, x: jnp.einsum("bn,bm->bnm", x, x), "over several axes"),
  ],
)
def test_functions_without_an_operator_are_refused(function, text):
  inputs = {"x": jax.ShapeDtypeStruct((4,), jnp.float32)}
  with pytest.raises(ConfigError, match=text):
    onnx_translation.build(function, {}, inputs, "y")


@pytest.mark.parametrize(
  ("task", "settings", "options"),
  [
    slow("finetune", {"ema": 0.5, "trainable": "mlp"}, {}),
    slow("finetune", {"pooling": "cls"}, {"weights": "bfloat16"}),
    slow("finetune", {}, {"weights": "int8"}),
    slow("linprobe", {"pooling": "all"}, {}),
  ],
)
def test_classifiers(tmp_path, one_batch, task, settings, options):
  built, params = random_classifier(
    tiny.config(task=task, classify=ClassifyConfig(**settings))
  )
  workdir = save(built.config, tmp_path / "run", params)
  command.write(str(workdir), str(tmp_path / "x"), format="onnx", **options)
  facts = json.loads((tmp_path / "x" / manifest.NAME).read_text())
  assert facts["class_names"] == list(CLASSES)
  assert facts["files"] == ["model.onnx"]
  session = load(tmp_path / "x")
  (entry,), (out,) = session.get_inputs(), session.get_outputs()
  assert (entry.name, entry.type) == ("images", "tensor(uint8)")
  assert entry.shape == ["batch", 8, 8, 1]
  assert (out.name, out.shape) == ("logits", ["batch", len(CLASSES)])
  params = rounded(params, options.get("weights", "float32"))
  logits = jax.jit(built.logits)
  for images in IMAGES.values():
    close(run(session, [images]), logits(params, images))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
  return runs.pretrained(tmp_path_factory.mktemp("pretrained"))


@pytest.mark.parametrize(
  "options",
  [
    slow({"pool": "grid", "layer": 1, "image_size": (8, 4)}),
    slow({"pool": "cls"}),
    slow({"pool": "all", "image_size": (4, 8)}),
    slow({"pool": "mean"}),
  ],
)
def test_encoders(pretrained, tmp_path, one_batch, options):
  command.write(str(pretrained), str(tmp_path / "x"), format="onnx", **options)
  exact = feature_extractor.from_checkpoint(
    pretrained, runs.devices_mesh(), **options
  )
  height, width, _ = exact.image_shape
  for images in IMAGES.values():
    images = images[:, :height, :width]
    wanted = exact.apply(exact.params, images)
    close(run(load(tmp_path / "x"), [images]), wanted)


@pytest.mark.slow
def test_small_weights_stay_small_in_the_file(pretrained, tmp_path, one_batch):
  sizes = {}
  for kind in ("float32", "bfloat16", "int8"):
    out = tmp_path / kind
    command.write(str(pretrained), str(out), format="onnx", weights=kind)
    model = onnx.load(out / "model.onnx")
    sizes[kind] = sum(len(x.raw_data) for x in model.graph.initializer)
  kernels = 2 * 32 * (96 + 32 + 64 + 64) + 4 * 32
  assert abs(sizes["float32"] - sizes["bfloat16"] - 2 * kernels) < 500
  assert abs(sizes["bfloat16"] - sizes["int8"] - kernels) < 3000  # and scales


@pytest.mark.slow
def test_weights_too_large_for_one_file(
  pretrained, tmp_path, one_batch, monkeypatch
):
  monkeypatch.setattr(onnx_format, "MAX_BYTES", 1000)
  command.write(str(pretrained), str(tmp_path / "x"), format="onnx")
  facts = json.loads((tmp_path / "x" / manifest.NAME).read_text())
  assert facts["files"] == ["model.onnx", "model.onnx.data"]
  (tmp_path / "x").rename(tmp_path / "moved")
  sizes = {
    each.name: each.stat().st_size for each in (tmp_path / "moved").iterdir()
  }
  assert sizes["model.onnx.data"] > 2 * sizes["model.onnx"] // 3
  run(load(tmp_path / "moved"), [IMAGES[1]])


def masks(length, count):
  """Returns masks of one patch and of all but one, in turn."""
  random = np.random.default_rng(1)
  noise = random.random((count, length)).argsort(axis=1)
  return noise < np.resize([length - 1, 1], (count, 1))


def painted(network, images, mask):
  """Reconstructs one image at a time by shuffling, in float64 NumPy."""
  rows = []
  for image, hidden in zip(images, mask, strict=True):
    image, hidden = image[None], hidden[None]
    data, size = network.data, network.patch_size
    x = (image / 255 - np.asarray(data.mean)) / np.asarray(data.std)
    pixels = reconstruction.to_pixels(
      network.predict(image, hidden),
      np.asarray(patchify.patchify(x, size)),
      hidden.astype(np.float32),
      network.grid,
      normalized=network.normalized,
    )
    cover = np.broadcast_to(hidden[..., None], pixels.shape)
    pixels, cover = (
      np.asarray(patchify.unpatchify(jnp.asarray(y), size, image.shape[1:3]))
      for y in (pixels, cover)
    )
    pixels = np.clip(pixels * data.std + data.mean, 0, 1) * 255
    rows.append(np.where(cover, pixels, image)[0])
  return np.stack(rows).astype(np.float32)


@pytest.mark.parametrize(
  ("form", "objective", "size"),
  [
    slow("onnx", {}, None),
    slow("onnx", {"target": "raw"}, (8, 4)),
    slow("onnx", {"masked_input": "mask_tokens"}, None),
    slow("stablehlo", {}, (4, 8)),
    slow("stablehlo", {"masked_input": "mask_tokens", "target": "raw"}, None),
    slow("savedmodel", {}, None),
  ],
)
def test_reconstructions(tmp_path, one_batch, form, objective, size):
  """Any number of patches may be masked, in each image others."""
  workdir = runs.pretrained(tmp_path / "run", objective=objective)
  out = tmp_path / "x"
  options = {"format": form, "image_size": size, "what": "reconstruction"}
  command.write(str(workdir), str(out), **options)
  network = reconstructor.load(workdir, image_size=size)
  height, width = network.data.image_size
  length = network.grid[0] * network.grid[1]
  facts = json.loads((out / manifest.NAME).read_text())
  assert facts["mask"]["shape"] == ["batch", length]
  assert facts["mask"]["dtype"] == "bool"
  assert facts["output"]["shape"] == ["batch", height, width, 1]
  serve = FORMS[form].load(epath.Path(out))
  for count, images in IMAGES.items():
    images, mask = images[:, :height, :width], masks(length, count)
    found = serve(images, mask)
    assert found.dtype == np.float32
    wanted = painted(network, images, mask)
    np.testing.assert_allclose(found, wanted, atol=0.01, rtol=0)  # of 255
    exact = np.broadcast_to(mask[..., None], (*mask.shape, 4))
    exact = patchify.unpatchify(exact, network.patch_size, (height, width))
    shown = ~np.asarray(exact)
    np.testing.assert_array_equal(found[shown], images[shown])
  everything = serve(images, np.ones_like(mask))
  assert np.isfinite(everything).all()


def test_mistakes(pretrained, tmp_path, monkeypatch):
  workdir = str(pretrained)
  for options, text in (
    ({"dtype": "bfloat16"}, "--dtype=bfloat16: ONNX Runtime .* --weights=bfl"),
    (
      {"what": "reconstruction", "pool": "cls"},
      "--pool=cls applies to features, and this export is a reconstruction",
    ),
  ):
    with pytest.raises(ConfigError, match=text):
      command.write(workdir, str(tmp_path / "x"), format="onnx", **options)
  monkeypatch.delitem(sys.modules, "mae_jax.tools.export.onnx")
  monkeypatch.setitem(sys.modules, "onnxruntime", None)
  with pytest.raises(ModuleNotFoundError) as caught:
    command.write(workdir, str(tmp_path / "x"), format="onnx")
  assert "pip install 'mae_jax[onnx]'" in str(errors.explain(caught.value))
  assert not list(tmp_path.iterdir())


def test_autoencoders_that_are_refused(tmp_path):
  built, params = random_classifier(tiny.config(task="finetune"))
  save(built.config, tmp_path / "classifier", params)
  runs.pretrained(tmp_path / "noise", objective={"masked_input": "noise"})
  for run, text in (
    ("classifier", "has no decoder, .*: name a checkpoint of pre-training, or"),
    ("noise", "objective.masked_input=noise, and ONNX .* --format=stablehlo"),
  ):
    options = {"what": "reconstruction", "format": "onnx"}
    with pytest.raises(ConfigError, match=text):
      command.write(str(tmp_path / run), str(tmp_path / "x"), **options)
