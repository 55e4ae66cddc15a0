"""The classifier equals transformers' ViT with the same weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

from mae_jax.models import mae, transformer, vit
from tests.helpers import torch_weights

WIDTH, DEPTH, HEADS, CLASSES = 48, 2, 4, 7
SIZE, PATCH, BATCH = (32, 48), 8, 3
GRID = (4, 6)


def torch_model() -> transformers.ViTForImageClassification:
  config = transformers.ViTConfig(
    image_size=SIZE,
    patch_size=PATCH,
    hidden_size=WIDTH,
    num_hidden_layers=DEPTH,
    num_attention_heads=HEADS,
    intermediate_size=4 * WIDTH,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    num_labels=CLASSES,
    attn_implementation="eager",
  )
  model = transformers.ViTForImageClassification(config).eval()
  torch_weights.randomize(model, seed=3)
  return model


def jax_model(pooling: str) -> vit.VisionTransformer:
  encoder = mae.Encoder(
    transformer.TransformerConfig(WIDTH, DEPTH, HEADS, 4 * WIDTH),
    patch_size=(PATCH, PATCH),
    learned_positions=True,
    final_norm=pooling == "cls",
  )
  return vit.VisionTransformer(encoder, CLASSES, pooling=pooling)


def to_jax(model: torch.nn.Module, pooling: str) -> Any:
  values = dict(model.named_parameters())
  weights = torch_weights.Weights(values)
  norm = weights.norm("vit.layernorm")
  encoder = {
    "patch_embed": weights.patch_embed(
      "vit.embeddings.patch_embeddings.projection"
    ),
    "cls_token": weights.take("vit.embeddings.cls_token"),
    "pos_embed": weights.take("vit.embeddings.position_embeddings"),
    "stack": weights.stack("vit.layers", DEPTH),
  }
  params = {"encoder": encoder, "head": weights.dense("classifier")}
  if pooling == "cls":
    encoder["norm"] = norm
  else:
    params["fc_norm"] = norm
  assert weights.used == values.keys()
  return params


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_logits_and_gradients(pooling: str):
  theirs, ours = torch_model(), jax_model(pooling)
  params = to_jax(theirs, pooling)
  random = np.random.default_rng(0)
  images = random.normal(size=(BATCH, *SIZE, 3)).astype(np.float32)
  labels = random.integers(0, CLASSES, BATCH)
  pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  if pooling == "cls":
    wanted = theirs(pixels).logits
  else:
    # The last block's tokens: transformers has no pooling before the norm.
    hidden = theirs.vit(pixels, output_hidden_states=True).hidden_states[-1]
    averaged = hidden[:, 1:].mean(dim=1)
    wanted = theirs.classifier(theirs.vit.layernorm(averaged))
  loss = torch.nn.functional.cross_entropy(wanted, torch.from_numpy(labels))
  loss.backward()

  def loss_fn(params):
    logits = ours.apply({"params": params}, images)
    picked = jax.nn.log_softmax(logits)[np.arange(BATCH), labels]
    return -picked.mean(), logits

  (_, logits), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
    params
  )
  gradient = theirs.vit.embeddings.position_embeddings.grad.numpy()
  apart = np.abs(grads["encoder"]["pos_embed"] - gradient).max()
  difference = {
    "logits": np.abs(logits - wanted.detach().numpy()).max(),
    "gradient of positions": apart / np.abs(gradient).max(),
  }
  print(f"largest differences, {pooling=}: {difference}")
  assert difference["logits"] <= 1e-5
  assert difference["gradient of positions"] <= 1e-4


def test_positions_begin_as_the_fixed_table():
  """A new classifier equals the pre-trained encoder bit for bit."""
  images = np.random.default_rng(1).normal(size=(2, *SIZE, 3))
  ours = jax_model("cls").encoder
  fixed = ours.clone(learned_positions=False)
  params = ours.init(jax.random.key(0), images)["params"]
  plain = {k: v for k, v in params.items() if k != "pos_embed"}
  assert not params["pos_embed"][:, 0].any()
  learned = ours.apply({"params": params}, images)
  wanted = fixed.apply({"params": plain}, images)
  np.testing.assert_array_equal(learned.patches, wanted.patches)
  np.testing.assert_array_equal(learned.cls, wanted.cls)


def test_drop_path_keeps_the_expectation():
  """Rates rise linearly, and remaining branches are scaled up."""
  noise = jax.random.uniform(jax.random.key(0), (20_000, 5, 2))
  kept = np.asarray(transformer.drop_path(noise, 0.4))
  assert kept.shape == (5, 20_000, 2)
  np.testing.assert_allclose(kept.mean(axis=(1, 2)), 1, atol=0.02)
  dropped = (kept == 0).mean(axis=(1, 2))
  np.testing.assert_allclose(dropped, [0, 0.1, 0.2, 0.3, 0.4], atol=0.01)
  for rate, block in zip([0, 0.1, 0.2, 0.3, 0.4], kept, strict=True):
    np.testing.assert_allclose(block.max(), 1 / (1 - rate), rtol=1e-6)


def test_a_dropped_branch_is_the_identity():
  stack = transformer.Stack(transformer.TransformerConfig(8, 2, 2, 16))
  x = np.random.default_rng(2).normal(size=(3, 5, 8)).astype(np.float32)
  variables = stack.init(jax.random.key(0), x)
  kept = np.ones((2, 3, 2), np.float32)
  whole = stack.apply(variables, x)
  np.testing.assert_array_equal(stack.apply(variables, x, kept), whole)
  kept[:, 1] = 0  # drops all branches of the second example
  out = stack.apply(variables, x, kept)
  np.testing.assert_array_equal(out[1], x[1])
  np.testing.assert_array_equal(out[0], whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [1, 2])
def test_frozen_blocks_compute_the_same_and_get_no_gradient(frozen: int):
  config = transformer.TransformerConfig(8, depth=2, heads=2, mlp_dim=16)
  stack = transformer.Stack(config)
  x = np.random.default_rng(2).normal(size=(3, 5, 8)).astype(np.float32)
  variables = stack.init(jax.random.key(0), x)
  part = transformer.Stack(dataclasses.replace(config, frozen=frozen))
  assert jax.tree.structure(part.init(jax.random.key(0), x)) == (
    jax.tree.structure(variables)
  )
  kept = np.array([[[1, 2], [0, 1], [1, 1]], [[1, 1], [2, 0], [0, 1]]])
  kept = kept.astype(np.float32)

  def loss(variables, x, stack):
    return (stack.apply(variables, x, kept) ** 2).sum()

  def run(stack):
    return jax.value_and_grad(loss, argnums=(0, 1))(variables, x, stack)

  whole, (wanted, _) = run(stack)
  found, (grads, into) = run(part)
  np.testing.assert_allclose(found, whole, rtol=1e-6)
  assert not into.any()
  for gradient, full in zip(
    jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True
  ):
    assert not gradient[:frozen].any()
    np.testing.assert_allclose(
      gradient[frozen:], full[frozen:], rtol=1e-5, atol=1e-5
    )
