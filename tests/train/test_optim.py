"""Tests of schedule, weight decay and optimizers against NumPy and PyTorch."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from mae_jax.config import OptimConfig
from mae_jax.models import mae, transformer, vit
from mae_jax.train import optim
from mae_jax.utils.errors import ConfigError
from tests.helpers import numpy_reference, tiny

_NORM = ("norm1", "norm2")
_DENSE = ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")
DECAYED = {
  "encoder/cls_token",
  "decoder/mask_token",
  "encoder/patch_embed/kernel",
  "decoder/embed/kernel",
  "decoder/pred/kernel",
  *(
    f"{side}/stack/blocks/{name}/kernel"
    for side in ("encoder", "decoder")
    for name in _DENSE
  ),
}
NOT_DECAYED = {
  "encoder/patch_embed/bias",
  "decoder/embed/bias",
  "decoder/pred/bias",
  *(
    f"{side}/norm/{kind}"
    for side in ("encoder", "decoder")
    for kind in ("scale", "bias")
  ),
  *(
    f"{side}/stack/blocks/{name}/{kind}"
    for side in ("encoder", "decoder")
    for name in _NORM
    for kind in ("scale", "bias")
  ),
  *(
    f"{side}/stack/blocks/{name}/bias"
    for side in ("encoder", "decoder")
    for name in _DENSE
  ),
}


def config(**changes) -> OptimConfig:
  return tiny.config(optim={"lr": 0.01} | changes).optim


def by_name(tree) -> dict:
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


@pytest.mark.parametrize(
  ("total", "warmup", "low"), [(50, 10, 0.0), (37, 5, 1e-3), (20, 0, 1e-4)]
)
def test_learning_rate_at_every_step(total: int, warmup: int, low: float):
  schedule = jax.jit(optim.learning_rate(config(min_lr=low), total, warmup))
  rates = [float(schedule(jnp.int32(step))) for step in range(total)]
  wanted = [
    numpy_reference.learning_rate(
      step, peak=0.01, low=low, warmup=warmup, total=total
    )
    for step in range(total)
  ]
  np.testing.assert_allclose(rates, wanted, rtol=1e-5, atol=1e-9)
  assert rates[0] == (0.0 if warmup else pytest.approx(0.01))
  assert rates[warmup] == pytest.approx(0.01)


@pytest.mark.parametrize(("total", "warmup"), [(10, 10), (10, 11), (10, -1)])
def test_warmup_must_end_before_training(total: int, warmup: int):
  text = (
    rf"optim.warmup='2 steps' is {warmup} steps and the whole training "
    f"{total}: shorten optim.warmup or lengthen train.length"
  )
  with pytest.raises(ConfigError, match=text):
    optim.learning_rate(config(), total, warmup)


def test_decayed_parameters_by_name():
  mask = by_name(optim.decay_mask(tiny.params()))
  assert {name for name, decayed in mask.items() if decayed} == DECAYED
  assert {name for name, decayed in mask.items() if not decayed} == NOT_DECAYED


def test_the_rule_of_the_reference_decays_the_same_parameters():
  """The reference skips biases and vectors; stacked layers count singly."""
  for name, leaf in by_name(tiny.params()).items():
    axes = leaf.ndim - ("blocks" in name)
    plain = axes <= 1 or name.endswith("/bias")
    assert (name in NOT_DECAYED) == plain, name


def test_updates_equal_adamw_in_numpy():
  params = tiny.params()
  settings = config(weight_decay=0.3, b1=0.8, b2=0.9)
  tx = optim.adamw(settings)
  random = np.random.default_rng(2)
  names = by_name(params)
  old = {n: np.asarray(p, np.float64) for n, p in names.items()}
  first = {n: np.zeros(p.shape) for n, p in names.items()}
  second = {n: np.zeros(p.shape) for n, p in names.items()}
  state, update = tx.init(params), jax.jit(tx.update)
  for step in range(1, 4):
    grads = jax.tree.map(
      lambda p: random.normal(size=p.shape).astype(np.float32), params
    )
    updates, state = update(grads, state, params)
    updates = by_name(updates)
    for name, gradient in by_name(grads).items():
      first[name] = 0.8 * first[name] + 0.2 * gradient
      second[name] = 0.9 * second[name] + 0.1 * gradient.astype(float) ** 2
      mean = first[name] / (1 - 0.8**step)
      root = np.sqrt(second[name] / (1 - 0.9**step))
      wanted = mean / (root + 1e-8) + 0.3 * (name in DECAYED) * old[name]
      np.testing.assert_allclose(
        updates[name], wanted, rtol=1e-5, atol=1e-5, err_msg=name
      )


def test_weight_decay_changes_tokens_and_kernels_but_no_bias():
  params = tiny.params()
  tx = optim.adamw(config(weight_decay=0.3))
  zeros = jax.tree.map(np.zeros_like, params)
  updates, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
  moved = {n for n, each in by_name(updates).items() if np.asarray(each).any()}
  assert moved == DECAYED
  token = updates["encoder"]["cls_token"]
  wanted = np.float32(0.3) * params["encoder"]["cls_token"]
  np.testing.assert_allclose(token, wanted, rtol=1e-6)


@pytest.mark.parametrize("clip", [0.5, 100.0])
def test_clipping_is_by_the_global_norm(clip: float):
  params = {"a": {"kernel": jnp.zeros((2, 2))}, "b": {"bias": jnp.zeros(3)}}
  grads = {
    "a": {"kernel": jnp.array([[3.0, 0.0], [0.0, 4.0]])},
    "b": {"bias": jnp.array([0.0, 12.0, 0.0])},
  }  # global norm 13
  tx = optim.adamw(config(grad_clip=clip, b1=0.9, b2=0.95))
  _, state = tx.update(grads, tx.init(params), params)
  adam = next(
    each for each in state if isinstance(each, optax.ScaleByAdamState)
  )
  factor = min(1.0, clip / 13)
  for name, kind in (("a", "kernel"), ("b", "bias")):
    moment, gradient = adam.mu[name][kind], grads[name][kind]
    np.testing.assert_allclose(moment, 0.1 * factor * gradient, rtol=1e-6)


def classifier(depth: int = 12) -> dict:
  """Returns parameter shapes of ViT-B's classifier, or of another depth."""
  config = transformer.TransformerConfig(768, depth, 12, 3072)
  encoder = mae.Encoder(config, (16, 16), learned_positions=True)
  model = vit.VisionTransformer(encoder.clone(final_norm=False), 1000)
  init = functools.partial(model.init, jax.random.key(0))
  return jax.eval_shape(init, jnp.zeros((1, 224, 224, 3)))["params"]


def test_layer_scales_of_every_parameter_of_vit_b():
  """Scales are decay^(13 - id): embeddings 0, block i is i + 1, rest 13."""
  params = classifier()
  scales = by_name(optim.layer_scales(params, 0.65))
  leaves = by_name(params)
  assert scales.keys() == leaves.keys()
  seen = set()
  for name, leaf in leaves.items():
    scale = np.broadcast_to(scales[name], leaf.shape)
    if name.startswith("encoder/stack/blocks/"):
      wanted = [0.65 ** (13 - (i + 1)) for i in range(12)]
      for block, each in zip(scale, wanted, strict=True):
        np.testing.assert_allclose(block, each, rtol=1e-6)
      seen.add("blocks")
    elif name.startswith(("head/", "fc_norm/")):
      np.testing.assert_array_equal(scale, 1)
      seen.add("head")
    else:
      assert name in {
        "encoder/cls_token",
        "encoder/pos_embed",
        "encoder/patch_embed/kernel",
        "encoder/patch_embed/bias",
      }
      np.testing.assert_allclose(scale, 0.65**13, rtol=1e-6)
      seen.add("embeddings")
  assert seen == {"blocks", "head", "embeddings"}


def small_classifier() -> dict:
  config = transformer.TransformerConfig(16, 2, 2, 32)
  encoder = mae.Encoder(config, (4, 4), learned_positions=True)
  model = vit.VisionTransformer(encoder.clone(final_norm=False), 5)
  init = functools.partial(model.init, jax.random.key(0))
  shapes = jax.eval_shape(init, jnp.zeros((1, 8, 8, 1)))["params"]
  return tiny.random_params(shapes)


def test_ten_steps_with_layer_decay_equal_pytorch():
  """Compares with torch.optim.AdamW with one group per layer."""
  params = small_classifier()
  settings = config(weight_decay=0.05, b1=0.9, b2=0.999)
  scales = optim.layer_scales(params, 0.65)
  tx = optim.adamw(settings, optim.FINETUNE_NOT_DECAYED, scales)
  groups, tensors = [], {}
  for name, leaf in by_name(params).items():
    stacked = name.startswith("encoder/stack")
    for number in range(leaf.shape[0] if stacked else 1):
      value = leaf[number] if stacked else leaf
      tensor = torch.nn.Parameter(torch.from_numpy(np.array(value)))
      id_ = number + 1 if stacked else 0
      if name.startswith(("head", "fc_norm")):
        id_ = 3
      plain = tensor.ndim == 1 or "cls_token" in name or "pos_embed" in name
      tensors[name, number] = tensor
      groups.append(
        {
          "params": [tensor],
          "weight_decay": 0.0 if plain else 0.05,
          "scale": 0.65 ** (3 - id_),
        }
      )
  theirs = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.999))
  random = np.random.default_rng(5)
  state, update = tx.init(params), jax.jit(tx.update)
  for step in range(10):
    lr = 1e-2 / (step + 1)
    grads = jax.tree.map(
      lambda p: random.normal(size=p.shape).astype(np.float32), params
    )
    for (name, number), tensor in tensors.items():
      gradient = by_name(grads)[name]
      if name.startswith("encoder/stack"):
        gradient = gradient[number]
      tensor.grad = torch.from_numpy(np.array(gradient))
    for group in theirs.param_groups:
      group["lr"] = lr * group["scale"]
    theirs.step()
    updates, state = update(grads, state, params)
    params = jax.tree.map(lambda p, u, lr=lr: p - lr * u, params, updates)
  largest = 0.0
  for (name, number), tensor in tensors.items():
    found = by_name(params)[name]
    found = found[number] if name.startswith("encoder/stack") else found
    wanted = tensor.detach().numpy()
    largest = max(largest, np.abs(found - wanted).max())
    np.testing.assert_allclose(
      found, wanted, rtol=2e-5, atol=2e-6, err_msg=name
    )
  print(f"largest difference of a parameter after ten steps: {largest:.1e}")


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_ten_lars_steps_equal_numpy(decay: float):
  """Compares decay, trust ratios, momentum and learning rate."""
  random = np.random.default_rng(6)
  params = {
    "kernel": random.normal(size=(6, 5)).astype(np.float32),
    "bias": np.zeros(5, np.float32),
  }
  tx = optim.lars(config(weight_decay=decay))
  wanted = {k: p.astype(np.float64) for k, p in params.items()}
  momentum = {k: np.zeros_like(p) for k, p in wanted.items()}
  state, update = tx.init(params), jax.jit(tx.update)
  for step in range(10):
    lr = 5.0 / (step + 1)
    grads = {
      k: random.normal(size=p.shape).astype(np.float32)
      for k, p in params.items()
    }
    for name in params:
      direction = grads[name].astype(np.float64)
      if name == "kernel":
        direction = direction + decay * wanted[name]
        size, length = (
          np.sqrt((x**2).sum()) for x in (wanted[name], direction)
        )
        direction = direction * 0.001 * size / length
      momentum[name] = 0.9 * momentum[name] + direction
      wanted[name] = wanted[name] - lr * momentum[name]
    updates, state = update(grads, state, params)
    params = jax.tree.map(lambda p, u, lr=lr: p - lr * u, params, updates)
  for name, value in wanted.items():
    largest = np.abs(params[name] - value).max()
    print(f"{decay=}: largest difference of {name} {largest:.1e}")
    np.testing.assert_allclose(params[name], value, rtol=1e-5, atol=1e-5)
