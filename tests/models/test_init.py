"""Initial parameters have the reference's distributions.

Xavier uniform for every kernel: the patch embedding as a (p p C, D) matrix, q,
k and v as one (D, 3 D) matrix, and each layer of a stack separately.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.config import Config
from mae_jax.models import factory
from tests.helpers import tiny

PATCH, CHANNELS, WIDTH, MLP, DECODER = 4, 3, 64, 256, 32
# By name: fan in and fan out of the reference's matrix.
FANS = {
  "encoder/patch_embed": (PATCH * PATCH * CHANNELS, WIDTH),
  "encoder/stack/blocks/attn/qkv": (WIDTH, 3 * WIDTH),
  "encoder/stack/blocks/attn/proj": (WIDTH, WIDTH),
  "encoder/stack/blocks/mlp/fc1": (WIDTH, MLP),
  "encoder/stack/blocks/mlp/fc2": (MLP, WIDTH),
  "decoder/embed": (WIDTH, DECODER),
  "decoder/stack/blocks/attn/qkv": (DECODER, 3 * DECODER),
  "decoder/stack/blocks/attn/proj": (DECODER, DECODER),
  "decoder/stack/blocks/mlp/fc1": (DECODER, 4 * DECODER),
  "decoder/stack/blocks/mlp/fc2": (4 * DECODER, DECODER),
  "decoder/pred": (DECODER, PATCH * PATCH * CHANNELS),
}


def config(**model) -> Config:
  return tiny.config(
    data={
      "image_size": (16, 16),
      "channels": CHANNELS,
      "mean": (0.5,) * CHANNELS,
      "std": (0.5,) * CHANNELS,
    },
    model={
      "patch_size": (PATCH, PATCH),
      "width": WIDTH,
      "depth": 3,
      "mlp_dim": MLP,
      "decoder_width": DECODER,
      "decoder_depth": 2,
    }
    | model,
  )


@pytest.fixture(scope="module")
def fresh() -> dict[str, np.ndarray]:
  """Initial parameters by path."""
  network = factory.masked_autoencoder(config())
  images = jnp.zeros((1, 16, 16, CHANNELS))
  keys = {"params": jax.random.key(0), "mask": jax.random.key(1)}
  params = jax.jit(network.init)(keys, images)["params"]
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def test_kernels_are_xavier_uniform(fresh):
  kernels = {name for name in fresh if name.endswith("/kernel")}
  assert kernels == {f"{name}/kernel" for name in FANS}
  for name, (fan_in, fan_out) in FANS.items():
    kernel = fresh[f"{name}/kernel"]
    layers = kernel if "blocks" in name else kernel[None]
    limit = np.sqrt(6 / (fan_in + fan_out))
    for layer in layers:
      assert layer.shape == (fan_in, fan_out), name
      # A uniform sample of n comes within limit / n of its limit on average.
      n = layer.size
      assert limit * (1 - 12 / n) <= np.abs(layer).max() <= limit, name
      # Within 4.5 standard errors of the mean and of the mean square.
      assert abs(layer.mean()) < 4.5 * limit / np.sqrt(3 * n), name
      square = np.mean((layer / limit) ** 2)
      assert abs(square - 1 / 3) < 4.5 * np.sqrt(4 / 45 / n), name


def test_layers_of_a_stack_differ(fresh):
  for name, kernel in fresh.items():
    if "blocks" in name and name.endswith("/kernel"):
      for i in range(1, len(kernel)):
        correlation = np.corrcoef(kernel[0].ravel(), kernel[i].ravel())[0, 1]
        assert abs(correlation) < 4.5 / np.sqrt(kernel[0].size), name


def test_tokens_biases_and_norms(fresh):
  tokens = {"encoder/cls_token": WIDTH, "decoder/mask_token": DECODER}
  for name, width in tokens.items():
    token = fresh[name]
    assert token.shape == (1, 1, width)
    deviation = np.sqrt(np.mean(token**2))
    # The mean square of n normal draws has a relative deviation sqrt(2 / n).
    assert abs((deviation / 0.02) ** 2 - 1) < 4 * np.sqrt(2 / width), name
  rest = [n for n in fresh if n not in tokens and not n.endswith("/kernel")]
  for name in rest:
    wanted = 1 if name.endswith("/scale") else 0
    assert (fresh[name] == wanted).all(), name
  assert sum(name.endswith("/scale") for name in rest) == 2 * 3
  assert all(leaf.dtype == np.float32 for leaf in fresh.values())


def test_compute_type_does_not_change_parameters():
  wanted = tiny.shapes(config())
  assert tiny.shapes(config(dtype="bfloat16")) == wanted
