"""Tests of the Python API's models: inputs, results, parity and errors."""

from __future__ import annotations

import concurrent.futures
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from sklearn import datasets

import mae_jax
from mae_jax.api import results
from mae_jax.data import prepare
from mae_jax.evals import load_model
from mae_jax.tools import feature_extractor, predict
from tests.helpers import runs

SIZE = {"image_size": 16, "patch_size": 4, "num_channels": 3}
SMALL = {
  "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
  "intermediate_size": 64, "layer_norm_eps": 1e-6, **SIZE,
}  # fmt: skip


TINY = {"width": 32, "depth": 2, "heads": 4}


@pytest.fixture(scope="module")
def digits():
  return mae_jax.from_pretrained("digits")


@pytest.fixture(scope="module")
def images():
  """Eight digits, uint8 [8, 8, 8, 1]."""
  values = datasets.load_digits().images[:8, ..., None]
  return np.round(values * 255 / 16).astype(np.uint8)


@pytest.fixture(scope="module")
def classifier():
  model = mae_jax.create_model(
    "vit_ti8", image_size=(16, 24), num_classes=3, class_names=["a", "b", "c"],
    **TINY,
  )  # fmt: skip
  # A new head's kernel is so small that all classes are nearly as likely.
  model.params = jax.tree_util.tree_map_with_path(
    lambda path, x: 1e4 * x if "head" in str(path) else x, model.params
  )
  return model


@pytest.fixture(autouse=True)
def nothing_is_printed(capfd):
  yield
  out, err = capfd.readouterr()
  assert (out, err) == ("", "")


def test_the_package_lists_its_names():
  assert set(mae_jax.__all__) <= set(dir(mae_jax))
  for name in mae_jax.__all__:
    assert getattr(mae_jax, name) is not None
  assert mae_jax.__version__.startswith("0.")
  with pytest.raises(AttributeError, match="no attribute 'resnet'"):
    mae_jax.resnet  # noqa: B018


def test_features_equal_the_commands(digits, images, capfd):
  mesh = runs.devices_mesh()
  found = load_model.load("digits", mesh)
  capfd.readouterr()  # a command prints what it loads
  for pool in feature_extractor.POOLS:
    network = feature_extractor.extractor(found, mesh, pool=pool)
    wanted = np.asarray(network.apply(network.params, images))
    got = digits.features(images, pool=pool)
    np.testing.assert_allclose(got.values, wanted, atol=1e-5, rtol=0)
    assert got.readable.all()
    np.testing.assert_array_equal(np.asarray(got), got.values)


def test_one_pass_gives_the_features_of_several_layers(digits, images):
  both = digits.features(images, pool="grid", layers=[4, 2], batch_size=3)
  assert list(both) == [2, 4]
  for layer, values in both.items():
    assert values.shape == (8, 4, 4, 64)
    (alone,) = digits.features(images, pool="grid", layers=[layer]).values()
    np.testing.assert_allclose(values, alone, atol=1e-5, rtol=0)


def test_images_of_any_kind_are_the_same(digits, images, tmp_path):
  for number, image in enumerate(images):
    Image.fromarray(image[..., 0]).save(tmp_path / f"{number}.png")
  wanted = digits.features(images)
  assert wanted.names == [str(n) for n in range(8)]
  color = images.repeat(3, axis=-1)
  several = {
    "folder": tmp_path,
    "text": str(tmp_path),
    "paths": [tmp_path / f"{n}.png" for n in range(8)],
    "pillow": [Image.fromarray(x[..., 0]) for x in images],
    "jax": jnp.asarray(images),
    "torch": torch.from_numpy(images),
    "list": list(images),
    "color": color,
    "planes": [x[..., 0] for x in images],
    "mixed": [images[:3], tmp_path / "3.png", *images[4:]],
  }
  for name, given in several.items():
    found = digits.features(given)
    np.testing.assert_array_equal(found.values, wanted.values, err_msg=name)
  assert digits.features(tmp_path).names[3] == "3.png"


def test_an_unreadable_image_is_nan_and_warned_of(digits, images, tmp_path):
  Image.fromarray(images[0, ..., 0]).save(tmp_path / "a.png")
  (tmp_path / "b.png").write_bytes(b"no image")
  with pytest.warns(UserWarning, match=r"b\.png cannot be read") as caught:
    found = digits.features(tmp_path)
  assert caught[0].filename == __file__
  assert found.readable.tolist() == [True, False]
  assert np.isfinite(found.values).all(axis=1).tolist() == [True, False]
  with pytest.warns(UserWarning, match=r"b\.png cannot be read"):
    assert digits.reconstruct(tmp_path).names == ["a.png"]


def test_apply_is_pure_jittable_and_differentiable(digits, images):
  wanted = digits.features(images).values
  # First inside `jit`: nothing of that trace may be kept.
  fresh = mae_jax.from_pretrained("digits")
  jitted = jax.jit(fresh.apply)(fresh.params, images)
  np.testing.assert_allclose(jitted, wanted, atol=1e-5, rtol=0)
  np.testing.assert_allclose(
    fresh.apply(fresh.params, images), wanted, atol=1e-5, rtol=0
  )

  def loss(params, pixels):
    return jnp.square(fresh.apply(params, pixels)).mean()

  pixels = jnp.asarray(images, jnp.float32)
  slopes = jax.grad(loss, argnums=(0, 1))(fresh.params, pixels)
  kernel = slopes[0]["model"]["encoder"]["patch_embed"]["kernel"]
  assert np.abs(kernel).max() > 0
  assert np.abs(slopes[1]).max() > 0
  with pytest.raises(mae_jax.ConfigError, match=r"takes \[B, 8, 8, 1\]"):
    fresh.apply(fresh.params, images[0])


def test_parameters_may_be_replaced(images):
  model = mae_jax.from_pretrained("digits")
  before = model.features(images).values
  painted = model.reconstruct(images).reconstruction
  model.params = jax.tree.map(lambda x: 0.9 * x, model.params)
  assert np.abs(model.features(images).values - before).max() > 1e-2
  assert (model.reconstruct(images).reconstruction != painted).any()
  np.testing.assert_allclose(
    model.apply(model.params, images),
    model.features(images).values,
    atol=1e-5,
    rtol=0,
  )


def test_reconstructions_are_those_of_the_network(digits, images):
  found = digits.reconstruct(images, mask_ratio=0.5, seed=3)
  assert found.mask.sum(axis=(1, 2)).tolist() == [8] * 8
  assert len({mask.tobytes() for mask in found.mask}) == 8
  again = digits.reconstruct(images[:2], mask_ratio=0.5, seed=3, batch_size=1)
  np.testing.assert_array_equal(again.mask, found.mask[:2])
  apart = again.reconstruction.astype(int) - found.reconstruction[:2]
  assert np.abs(apart).max() <= 1
  np.testing.assert_array_equal(found.original, images)
  hidden = found.mask.repeat(2, axis=1).repeat(2, axis=2)
  np.testing.assert_array_equal(found.pixel_mask, hidden)
  np.testing.assert_array_equal(found.pasted[~hidden], images[~hidden])
  assert np.isin(found.masked[hidden], (120, 232)).all()  # hatched
  # The network has learned digits: better than one gray level.
  gray = np.square(images[hidden] - images[hidden].mean()).mean()
  assert found.psnr.mean() > 10 * np.log10(255**2 / gray) + 3


def test_a_mask_may_be_given(digits, images):
  mask = np.zeros((4, 4), bool)
  mask[1:3, 1:3] = True
  found = digits.reconstruct(images[0], mask=mask)
  np.testing.assert_array_equal(found.mask[0], mask)


def test_notebooks_show_pictures(digits, images):
  for shown in (digits.reconstruct(images), digits.attention(images)):
    assert shown._repr_png_().startswith(b"\x89PNG")
    assert shown.sheet().width > 100
  assert "8, 8, 8, 1" in repr(digits.reconstruct(images))


def test_attention_is_that_of_the_block(digits, images):
  found = digits.attention(images[:2], layer=2, query=(1, 2))
  assert found.heads.shape == (2, 4, 4, 4)
  assert found.rollout.shape == (2, 4, 4)
  _, state = digits.module.encoder.apply(
    {"params": digits.params["model"]["encoder"]},
    digits.normalize(images[:2]),
    mutable=["intermediates"],
  )
  (weights,) = state["intermediates"]["stack"]["blocks"]["attn"]["weights"]
  row = np.asarray(weights)[1, :, :, 1 + 4 + 2, 1:]  # [image, head, patch]
  np.testing.assert_allclose(
    found.heads.reshape(2, 4, 16), row, atol=1e-5, rtol=0
  )


def test_predictions(classifier):
  images = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), np.uint8)
  prepared = [prepare.fit(image, classifier.config.data) for image in images]
  logits = classifier.apply(classifier.params, np.stack(prepared))
  wanted = np.asarray(jax.nn.softmax(logits))
  found = classifier.predict(images, top=9)
  order = np.argsort(-wanted, axis=1)
  np.testing.assert_array_equal(found.labels, order)
  np.testing.assert_allclose(
    found.probabilities, np.take_along_axis(wanted, order, 1), atol=1e-6
  )
  assert found.classes[0] == ["abc"[k] for k in order[0]]
  name, by_class = next(iter(found))
  assert name == "0"
  assert sum(by_class.values()) == pytest.approx(1)
  assert classifier.predict(images, top=1).labels.shape == (3, 1)


@pytest.mark.slow
def test_prepared_pixels_are_taken_as_they_are(classifier):
  images = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), np.uint8)
  same = {"preprocess": False}
  assert classifier.config.data.eval_crop < 1  # which would crop them
  logits = classifier.apply(classifier.params, images)
  found = classifier.predict(images, top=3, **same)
  wanted = np.take_along_axis(
    np.asarray(jax.nn.softmax(logits)), found.labels, 1
  )
  np.testing.assert_allclose(found.probabilities, wanted, atol=1e-6)
  model = mae_jax.create_model(
    "vit_ti8", image_size=(16, 24), decoder_width=32, decoder_depth=1,
    decoder_heads=4, **TINY,
  )  # fmt: skip
  np.testing.assert_allclose(
    model.features(images, **same).values,
    model.apply(model.params, images),
    atol=1e-5,
  )
  assert model.features(images[:, :, :16], image_size=16, **same).values.any()
  for result in (
    model.reconstruct(images, **same),
    model.attention(images, **same),
  ):
    np.testing.assert_array_equal(result.original, images)
  for wrong in (images[0], images[:, :8], "photos", [images[0]]):
    with pytest.raises(mae_jax.ConfigError, match=r"\[N, 16, 24, 3\], and"):
      model.features(wrong, **same)


def test_a_second_prediction_compiles_nothing(classifier, monkeypatch):
  images = np.zeros((2, 16, 24, 3), np.uint8)
  classifier.predict(images, top=2)

  def fail(*args):
    raise AssertionError("compiled again")

  monkeypatch.setattr(predict, "best_classes", fail)
  assert classifier.predict(images, top=2).labels.shape == (2, 2)


def test_nnx_computes_the_same(digits, classifier, images):
  tokens = digits.nnx().features(digits.normalize(images))
  np.testing.assert_allclose(
    tokens.patches.mean(axis=1), digits.features(images).values, atol=1e-5
  )
  pixels = np.zeros((2, 16, 24, 3), np.uint8)
  np.testing.assert_allclose(
    classifier.nnx()(classifier.normalize(pixels)),
    classifier.apply(classifier.params, pixels),
    atol=1e-6,
  )


def test_threads_share_a_model(images):
  model = mae_jax.from_pretrained("digits")
  wanted = model.features(images).values

  def work(number):
    pool = ("mean", "cls", "grid", "mean")[number % 4]
    return pool, model.features(images, pool=pool, batch_size=3).values

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    for name, values in pool.map(work, range(8)):
      if name == "mean":
        np.testing.assert_allclose(values, wanted, atol=1e-5, rtol=0)


def test_transformers_classifier(tmp_path, capfd):
  torch.manual_seed(0)
  config = transformers.ViTConfig(**SMALL, num_labels=3)
  theirs = transformers.ViTForImageClassification(config).eval()
  theirs.save_pretrained(tmp_path)
  transformers.ViTImageProcessorPil(
    size={"height": 16, "width": 16}
  ).save_pretrained(tmp_path)
  capfd.readouterr()  # transformers prints that it saves
  model = mae_jax.from_pretrained(tmp_path)
  assert model.kind == "classifier"
  image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
  processor = transformers.ViTImageProcessorPil.from_pretrained(tmp_path)
  with torch.no_grad():
    logits = theirs(**processor(image, return_tensors="pt")).logits
  wanted = torch.softmax(logits, -1).numpy()[0]
  found = model.predict(image, top=3)
  np.testing.assert_allclose(
    found.probabilities[0], wanted[found.labels[0]], atol=1e-5, rtol=0
  )


def test_classes_of_the_same_name_are_told_apart():
  """ImageNet has two cranes, and files of transformers name both so."""
  found = results.Predictions(
    ["a.png"],
    np.array([[2, 1, 0]]),
    np.array([[0.5, 0.3, 0.2]]),
    ("crane", "dog", "crane"),
  )
  ((_, chances),) = found
  assert chances == {"crane (2)": 0.5, "dog": 0.3, "crane (0)": 0.2}


@pytest.mark.parametrize(
  ("call", "setting", "message"),
  [
    (lambda m, x: m.predict(x), None, "cannot predict classes: fine-tune"),
    (lambda m, x: m.features("none"), None, "no folder or file 'none'"),
    (lambda m, x: m.features(x, layers=[9]), "layer", "has blocks 1 to 4"),
    (lambda m, x: m.features(x, layers=[]), "layers", "names no block"),
    (lambda m, x: m.features(x, pool="max"), "pool", "known are all, cls"),
    (lambda m, x: m.features(x, batch_size=0), "batch_size", "at least 1"),
    (lambda m, x: m.features(x / 255), "images", "range is not known"),
    (lambda m, x: m.features(3), "images", "is a int: give a path"),
    (lambda m, x: m.features([]), "images", "at least one image"),
    (lambda m, x: m.features([x, 3]), "images", r"images\[1\] is a int"),
    (
      lambda m, x: m.features(x, image_size=(9, 9)),
      "image_size",
      "not a multiple of model.patch_size=2",
    ),
    (
      lambda m, x: m.features(np.zeros((2, 5, 8, 8), np.uint8)),
      "images",
      "8 channels, and the network takes 1",
    ),
    (lambda m, x: m.reconstruct(x, 1.0), "mask_ratio", "below 1"),
    (
      lambda m, x: m.reconstruct(x, strategy="star"),
      "strategy",
      "known are block, grid, random",
    ),
    (
      lambda m, x: m.reconstruct(x, mask=np.ones((4, 4))),
      "mask",
      "leave some patches visible",
    ),
    (
      lambda m, x: m.reconstruct(x, mask=np.ones((2, 4))),
      "mask",
      r"the patches have \(4, 4\)",
    ),
    (lambda m, x: m.attention(x, query=(0, 4)), "query", "first is"),
    (lambda m, x: m.attention(x, layer=0), "layer", "blocks 1 to 4"),
    (
      lambda m, x: mae_jax.from_pretrained("nowhere"),
      None,
      "no checkpoint in nowhere",
    ),
    (
      lambda m, x: mae_jax.from_pretrained("digits", heads=3),
      "heads",
      "contradicts the weights",
    ),
    (
      lambda m, x: mae_jax.from_pretrained("digits", target="mean"),
      "target",
      "known are norm_pix, raw",
    ),
    (
      lambda m, x: mae_jax.create_model("resnet50"),
      "name",
      "use vit_ti8, vit_ti16",
    ),
    (
      lambda m, x: mae_jax.create_model("vit_b16", image_size=225),
      "data.image_size",
      "nearest are 224 and 240",
    ),
    (
      lambda m, x: mae_jax.create_model(
        "vit_b16", num_classes=2, class_names=["a"]
      ),
      "num_classes",
      "1 names",
    ),
    (
      lambda m, x: mae_jax.create_model(
        "vit_b16", num_classes=3, class_names=["a", "b", "a"]
      ),
      "class_names",
      "'a' for the labels 0 and 2",
    ),
  ],
)
def test_mistakes(digits, images, call, setting, message):
  with pytest.raises(mae_jax.ConfigError, match=message) as caught:
    call(digits, images)
  assert "--" not in str(caught.value)
  assert caught.value.setting == setting


def test_an_encoder_does_not_reconstruct():
  model = mae_jax.create_model("vit_ti16", image_size=32, decoder=False, **TINY)
  assert model.kind == "encoder"
  assert model.features(np.zeros((40, 50), np.uint8)).values.shape == (1, 32)
  with pytest.raises(mae_jax.ConfigError, match="has no decoder"):
    model.reconstruct(np.zeros((32, 32, 3), np.uint8))


@pytest.mark.slow
def test_created_models_are_what_their_names_say():
  for name, same in (
    ("vit_ti4", "Ti/4"),
    ("vit_tiny_patch4_16", "Ti/4"),
    ("Ti/4", "Ti/4"),
  ):
    model = mae_jax.create_model(
      name, image_size=(16, 8), channels=4, decoder_width=32, decoder_depth=1,
      decoder_heads=4, seed=1, depth=2,
    )  # fmt: skip
    assert model.config.model.variant == same
    assert (model.grid, model.channels) == ((4, 2), 4)
    assert model.kind == "autoencoder"
  other = mae_jax.create_model(
    "vit_ti4", image_size=(16, 8), channels=4, decoder_width=32,
    decoder_depth=1, decoder_heads=4, seed=2, depth=2,
  )  # fmt: skip
  assert (
    model.params["model"]["encoder"]["cls_token"]
    != other.params["model"]["encoder"]["cls_token"]
  ).any()
  assert mae_jax.list_models("vit_h*") == ["vit_h14"]


def test_a_config_is_changed_by_names():
  config = mae_jax.recipe("vit_b")
  changed = config.replace({"data.batch_size": 512, "task": "finetune"})
  assert changed.optim.lr == pytest.approx(2 * config.optim.blr)
  assert (changed.task, changed.data.batch_size) == ("finetune", 512)
  fixed = config.replace({"optim.lr": 1e-3}).replace({"data.batch_size": 256})
  assert fixed.optim.lr == 1e-3
  with pytest.raises(mae_jax.ConfigError, match="did you mean"):
    config.replace({"data.batchsize": 1})
  with pytest.raises(mae_jax.ConfigError, match="at least 1"):
    config.replace({"data.batch_size": 0})
  assert dataclasses.is_dataclass(config)
  assert "digits" in mae_jax.list_recipes()


@pytest.mark.slow
def test_a_network_for_images_of_another_size(tmp_path):
  model = mae_jax.from_pretrained("digits")
  larger = model.resized((12, 16))
  assert (model.image_size, larger.image_size) == ((8, 8), (12, 16))
  pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 16, 1), np.uint8)
  found = larger.features(pixels, preprocess=False).values
  wanted = model.features(pixels, image_size=(12, 16), preprocess=False).values
  np.testing.assert_array_equal(found, wanted)
  tokens = larger.apply(larger.params, pixels)
  assert jax.tree.leaves(tokens)[0].shape[0] == 2
  shown = larger.reconstruct(pixels, preprocess=False)
  assert shown.mask.shape == (2, 6, 8)
  larger.save_pretrained(tmp_path / "larger", format="jax")
  again = mae_jax.from_pretrained(tmp_path / "larger")
  assert again.image_size == (12, 16)
  again = again.features(pixels, preprocess=False).values
  np.testing.assert_array_equal(again, found)
  with pytest.raises(mae_jax.ConfigError, match=r"image_size=9 is not a mult"):
    model.resized(9)
