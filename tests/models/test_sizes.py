"""Every named size, every impossible setting, and settings of speed.

Parameter counts are pinned, and agree with the reference's table and with a
formula. They come from `jax.eval_shape`, which allocates nothing.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.models import architecture, factory
from mae_jax.utils.errors import ConfigError
from tests.helpers import tiny

PINNED = {  # encoder, decoder at 224 pixels
  "Ti/16": (5_486_592, 25_713_408),
  "S/16": (21_590_016, 25_811_712),
  "B/16": (85_647_360, 26_008_320),
  "L/16": (303_099_904, 26_139_392),
  "H/14": (630_435_840, 26_178_124),
  "g/14": (1_010_840_576, 26_243_660),
  "2B/14": (1_889_751_040, 26_833_484),
}
REFERENCE = {  # REFERENCE.md, in millions
  "B/16": ("85.6", "26.0"),
  "L/16": ("303.1", "26.1"),
  "H/14": ("630.4", "26.2"),
}


def blocks(width: int, depth: int, mlp: int) -> int:
  attention = width * 3 * width + 3 * width + width * width + width
  dense = width * mlp + mlp + mlp * width + width
  return depth * (attention + dense + 4 * width)


def count(tree) -> int:
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_every_variant_is_pinned():
  assert {name.split("/")[0] for name in PINNED} == set(architecture.VARIANTS)


@pytest.mark.parametrize("variant", PINNED)
def test_parameter_counts(variant: str):
  params = tiny.shapes(tiny.big(variant))
  found = count(params["encoder"]), count(params["decoder"])
  assert found == PINNED[variant]
  if variant in REFERENCE:
    assert tuple(f"{n / 1e6:.1f}" for n in found) == REFERENCE[variant]
  dims, patch = architecture.parse(variant)
  pixels, d = 3 * patch**2, dims.width
  # Kernel and bias of the embedding, class token, blocks, final norm.
  encoder = pixels * d + d + d + blocks(d, dims.depth, dims.mlp_dim) + 2 * d
  decoder = d * 512 + 512 + 512 + blocks(512, 8, 2048) + 2 * 512
  assert found == (encoder, decoder + 512 * pixels + pixels)
  assert set(params) == {"encoder", "decoder"}


@pytest.mark.parametrize(
  ("sections", "text"),
  [
    (
      {"data": {"image_size": (9, 8)}},
      "data.image_size=9 is not a multiple of model.patch_size=2; .* 8 and 10",
    ),
    (
      {"model": {"heads": 3}},
      r"model.heads=3 does not divide model.width=32; .* are (2|4) and (2|4)",
    ),
    (
      {"model": {"decoder_heads": 5}},
      r"model.decoder_heads=5 does not divide model.decoder_width=16; .* 4 and",
    ),
    (
      {"model": {"width": 30, "heads": 5}},
      "model.width=30 is not a multiple of 4.*; use 32",
    ),
    (
      {"model": {"decoder_width": 18, "decoder_heads": 3}},
      "model.decoder_width=18 is not a multiple of 4.*; use 20",
    ),
    ({"model": {"decoder_width": 1}}, "model.decoder_width=1 is not a mul"),
    (
      {"data": {"image_size": 2**12}},
      r"image_size=\(4096, 4096\) .* 4194304 patches, more than 1048576",
    ),
    ({"model": {"depth": 0}}, "model.depth=0 must be positive"),
    ({"model": {"decoder_depth": 0}}, "model.decoder_depth=0 must be positive"),
    (
      {"objective": {"mask_ratio": 0.99}},
      "objective.mask_ratio=0.99 keeps 0 of 16 patches.*at most 0.9374",
    ),
    (
      {"objective": {"mask_ratio": 0.0}},
      "mask_ratio=0.0 keeps 16 of 16 patches.*above 0",
    ),
    (
      {"objective": {"mask": "grid", "mask_ratio": 0.6}},
      "a grid cannot keep 6 of 4 x 4 patches: use another mask, or a "
      "mask_ratio of 0.06, 0.25, 0.5, 0.75, 0.93",
    ),
    ({"objective": {"mask": "blocks"}}, "objective.mask='blocks' .*'block'"),
    ({"objective": {"loss": "huber"}}, "objective.loss='huber' is not known"),
    (
      {"objective": {"loss_on": "visible"}},
      "objective.loss_on='visible' is not known: known are all, masked",
    ),
    (
      {"model": {"variant": "B"}},
      "model.variant='B' is not a size and a patch",
    ),
    ({"model": {"variant": "B/0"}}, "'B/0' is not a size and a patch"),
    ({"model": {"variant": "X/16"}}, "model.variant='X' is not known.*B.*Ti"),
    ({"model": {"variant": "2b/16"}}, "'2b' is not known: known are 2B, B"),
    (
      {"model": {"dtype": "float16"}},
      "model.dtype=float16 is not offered: .* Use bfloat16, or float32",
    ),
    ({"model": {"remat": "half"}}, "model.remat='half' is not known.*dots"),
    (
      {"model": {"patch_size": (1, 1)}, "objective": {"target": "norm_pix"}},
      "objective.target='norm_pix' needs .* there is one: use larger",
    ),
    (
      {"data": {"mean": (0.1, 0.2, 0.3)}},
      r"data.mean=\(0.1, 0.2, 0.3\) has 3 values for data.channels=1: give one",
    ),
    (
      {"data": {"channels": 3, "std": (0.1, 0.2)}},
      r"data.std=\(0.1, 0.2\) has 2 values for data.channels=3",
    ),
  ],
)
def test_what_cannot_work_is_refused(sections, text: str):
  with pytest.raises(ConfigError, match=text):
    tiny.model(**sections)


def test_one_value_patches_without_norm_pix_and_named_patch_sizes():
  model = tiny.model(model={"patch_size": (1, 1)}, objective={"target": "raw"})
  assert (model.decoder.grid, model.decoder.target_dim) == ((8, 8), 1)
  model = tiny.model(model={"patch_size": (4, 2)})
  assert (model.decoder.grid, model.decoder.target_dim) == ((2, 4), 8)
  model = tiny.model(model={"patch_size": None, "variant": "S/4"})
  assert (model.decoder.grid, model.decoder.target_dim) == ((2, 2), 16)


def test_unroll_is_chosen_by_platform():
  config = tiny.config(model={"unroll": 0, "depth": 3, "decoder_depth": 2})
  cpu = factory.masked_autoencoder(config, "cpu")
  tpu = factory.masked_autoencoder(config, "tpu")
  assert (cpu.encoder.config.unroll, cpu.decoder.config.unroll) == (3, 2)
  assert (tpu.encoder.config.unroll, tpu.decoder.config.unroll) == (1, 1)
  chosen = tiny.model(model={"unroll": 2})
  assert (chosen.encoder.config.unroll, chosen.decoder.config.unroll) == (2, 2)


def test_remat_is_chosen_by_platform():
  config = tiny.config(model={"remat": "auto"})
  for platform, chosen in (("cpu", "none"), ("tpu", "dots"), ("gpu", "dots")):
    model = factory.masked_autoencoder(config, platform)
    assert model.encoder.config.remat == model.decoder.config.remat == chosen
  config = tiny.config(model={"remat": "full"})
  assert (
    factory.masked_autoencoder(config, "cpu").encoder.config.remat == "full"
  )


def images_and_noise() -> tuple[np.ndarray, np.ndarray]:
  random = np.random.default_rng(5)
  images = random.normal(size=(8, 8, 8, 1)).astype(np.float32)
  return images, random.uniform(size=(8, 16)).astype(np.float32)


@functools.cache
def plain_loss_and_grads():
  return loss_and_grads()


def loss_and_grads(**model):
  network, (images, noise) = tiny.model(model=model), images_and_noise()

  def loss_fn(params):
    return network.apply({"params": params}, images, noise).loss

  return jax.jit(jax.value_and_grad(loss_fn))(tiny.params())


@pytest.mark.slow
@pytest.mark.parametrize(
  "settings",
  [{"unroll": 2}, {"remat": "dots"}, {"remat": "full"}],
  ids=str,
)
def test_unroll_and_remat_change_only_speed(settings):
  assert tiny.shapes(tiny.config(model=settings)) == tiny.shapes(tiny.config())
  plain_loss, plain_grads = plain_loss_and_grads()
  loss, grads = loss_and_grads(**settings)
  np.testing.assert_allclose(loss, plain_loss, rtol=1e-6)
  for got, want in zip(
    jax.tree.leaves(grads), jax.tree.leaves(plain_grads), strict=True
  ):
    largest = np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * max(1, largest))


def test_remat_recomputes():
  """The setting reaches the program: its backward pass does more work."""

  def flops(**model) -> float:
    network, (images, noise) = tiny.model(model=model), images_and_noise()

    def loss_fn(params):
      return network.apply({"params": params}, images, noise).loss

    lowered = jax.jit(jax.grad(loss_fn)).lower(tiny.params())
    return lowered.cost_analysis()["flops"]

  plain, full = flops(unroll=2), flops(unroll=2, remat="full")
  assert full > 1.15 * plain
  assert plain <= flops(unroll=2, remat="dots") < full


def test_bfloat16_compute_keeps_float32_where_it_matters():
  images, noise = images_and_noise()
  out = {}
  for dtype in ("float32", "bfloat16"):
    network = tiny.model(model={"dtype": dtype})
    apply = jax.jit(network.apply)
    out[dtype] = apply({"params": tiny.params()}, images, noise)
    for leaf in jax.tree.leaves(out[dtype]):
      assert leaf.dtype == jnp.float32
    features = jax.eval_shape(
      lambda p, x, network=network: network.apply(
        {"params": p}, x, method=network.features
      ),
      tiny.params(),
      images,
    )
    assert features.cls.dtype == features.patches.dtype == jnp.float32
  half, full = out["bfloat16"], out["float32"]
  np.testing.assert_array_equal(half.mask, full.mask)
  np.testing.assert_allclose(half.loss, full.loss, rtol=1e-2)
  # Shows that bfloat16 was used: it has 8 bits, and predictions are near 1.
  difference = np.abs(half.pred - full.pred).max()
  assert 1e-4 < difference < 0.1 * np.abs(full.pred).max()
