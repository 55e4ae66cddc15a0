"""The network, its gradients and its training equal transformers' ViTMAE.

An independent implementation in PyTorch gets the same random weights (including
biases, LayerNorms and tokens), images, noise, and position tables written in
NumPy loops. Measured on x86-64: latent and predictions 2e-6, loss 2e-7,
gradients 2e-6 of the largest value, 20 steps 4e-7. The tests assert the
tolerances that the project promises.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

from mae_jax import checkpoints
from mae_jax.models import mae
from mae_jax.train import optim
from mae_jax.train import step as update
from tests.helpers import numpy_reference, tiny, torch_weights
from tests.helpers.params import slow

SIZE, PATCH, BATCH = 32, 8, 4
WIDTH, DEPTH, HEADS = 48, 2, 4
DECODER_WIDTH, DECODER_DEPTH, DECODER_HEADS = 32, 2, 2
LENGTH = (SIZE // PATCH) ** 2


def torch_model(
  channels: int, norm_pix: bool
) -> transformers.ViTMAEForPreTraining:
  """Builds ViTMAE with the reference's settings and random parameters."""
  config = transformers.ViTMAEConfig(
    image_size=SIZE,
    patch_size=PATCH,
    num_channels=channels,
    hidden_size=WIDTH,
    num_hidden_layers=DEPTH,
    num_attention_heads=HEADS,
    intermediate_size=4 * WIDTH,
    decoder_hidden_size=DECODER_WIDTH,
    decoder_num_hidden_layers=DECODER_DEPTH,
    decoder_num_attention_heads=DECODER_HEADS,
    decoder_intermediate_size=4 * DECODER_WIDTH,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    mask_ratio=0.75,
    norm_pix_loss=norm_pix,
    attn_implementation="eager",
  )
  model = transformers.ViTMAEForPreTraining(config).eval()
  torch_weights.randomize(model, seed=7)
  with torch.no_grad():
    for table in (
      model.vit.embeddings.position_embeddings,
      model.decoder.decoder_pos_embed,
    ):
      assert not table.requires_grad
      grid = (SIZE // PATCH, SIZE // PATCH)
      rows = numpy_reference.position_table(grid, table.shape[-1])
      rows = np.concatenate([np.zeros((1, table.shape[-1])), rows])
      table.copy_(torch.from_numpy(rows)[None])
  return model


def jax_model(channels: int, norm_pix: bool) -> mae.MaskedAutoencoder:
  """Builds the same network in JAX."""
  return tiny.model(
    data={
      "image_size": (SIZE, SIZE),
      "channels": channels,
      "mean": (0.5,) * channels,
      "std": (0.25,) * channels,
    },
    model={
      "variant": f"Ti/{PATCH}",
      "width": WIDTH,
      "depth": DEPTH,
      "heads": HEADS,
      "mlp_dim": 4 * WIDTH,
      "decoder_width": DECODER_WIDTH,
      "decoder_depth": DECODER_DEPTH,
      "decoder_heads": DECODER_HEADS,
    },
    objective={"mask_ratio": 0.75, "target": "norm_pix" if norm_pix else "raw"},
  )


def to_jax(values: dict[str, torch.Tensor]) -> Any:
  """Converts weights or gradients by PyTorch name to this project's tree."""
  weights = torch_weights.Weights(values)
  embed = "vit.embeddings.patch_embeddings.projection"
  tree = {
    "encoder": {
      "patch_embed": weights.patch_embed(embed),
      "cls_token": weights.take("vit.embeddings.cls_token"),
      "stack": weights.stack("vit.layers", DEPTH),
      "norm": weights.norm("vit.layernorm"),
    },
    "decoder": {
      "embed": weights.dense("decoder.decoder_embed"),
      "mask_token": weights.take("decoder.mask_token"),
      "stack": weights.stack("decoder.decoder_layers", DECODER_DEPTH),
      "norm": weights.norm("decoder.decoder_norm"),
      "pred": weights.dense("decoder.decoder_pred"),
    },
  }
  assert weights.used == values.keys()
  return tree


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
  return {n: p for n, p in model.named_parameters() if p.requires_grad}


def sample(seed: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
  """Samples images whose patches differ in mean and contrast, and noise."""
  random = np.random.default_rng(seed)
  images = random.normal(size=(BATCH, SIZE, SIZE, channels))
  images *= random.uniform(0.2, 2, size=(BATCH, 1, SIZE, 1))
  images += random.normal(size=(BATCH, SIZE, 1, channels))
  noise = random.uniform(size=(BATCH, LENGTH))
  return images.astype(np.float32), noise.astype(np.float32)


def run_torch(model: torch.nn.Module, images: np.ndarray, noise: np.ndarray):
  pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  return model(pixels, noise=torch.from_numpy(noise))


def parts(name: str, value: np.ndarray) -> dict[str, np.ndarray]:
  """Splits a stacked array by layer and into q, k, v, as in PyTorch."""
  result = {name: value}
  if "blocks" in name:
    result = {f"{name}[{i}]": each for i, each in enumerate(value)}
  if "qkv" in name:
    result = {
      f"{key}.{x}": each
      for key, whole in result.items()
      for x, each in zip("qkv", np.split(whole, 3, axis=-1), strict=True)
    }
  return result


def named(tree: Any) -> dict[str, np.ndarray]:
  result = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    result |= parts(name, np.asarray(leaf))
  return result


@pytest.mark.parametrize(
  ("channels", "norm_pix"), [(3, True), slow(3, False), slow(1, True)]
)
def test_forward_and_gradients(channels: int, norm_pix: bool):
  theirs, ours = torch_model(channels, norm_pix), jax_model(channels, norm_pix)
  params = to_jax(trained(theirs))
  images, noise = sample(1, channels)
  expected = run_torch(theirs, images, noise)
  expected.loss.backward()
  hidden = theirs.vit(
    torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
    noise=torch.from_numpy(noise),
  ).last_hidden_state.detach()

  def loss_fn(params):
    out = ours.apply({"params": params}, images, noise)
    return out.loss, out

  (loss, out), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
    params
  )
  encode = functools.partial(ours.apply, method=ours.forward_encoder)
  tokens, masked = jax.jit(encode)({"params": params}, images, noise)
  np.testing.assert_array_equal(out.mask, expected.mask.numpy())
  np.testing.assert_array_equal(
    masked.ids_restore, expected.ids_restore.numpy()
  )
  np.testing.assert_array_equal(out.mask, masked.mask)
  latent = np.concatenate([tokens.cls[:, None], tokens.patches], axis=1)
  difference = {
    "latent": np.abs(latent - hidden.numpy()).max(),
    "predictions": np.abs(out.pred - expected.logits.detach().numpy()).max(),
    "loss": abs(float(loss) - expected.loss.item()),
  }
  grads = named(grads)
  wanted = named(to_jax({n: p.grad for n, p in trained(theirs).items()}))
  assert grads.keys() == wanted.keys()
  relative = {}
  for name, gradient in wanted.items():
    if name.endswith(".k") and "bias" in name:
      # Softmax ignores a constant added to all keys, so this gradient is only
      # rounding, without a scale to be relative to.
      assert max(np.abs(gradient).max(), np.abs(grads[name]).max()) < 1e-7
    else:
      relative[name] = (
        np.abs(gradient - grads[name]).max() / np.abs(gradient).max()
      )
  difference["gradients"] = max(relative.values())
  print(f"largest differences, {channels=} {norm_pix=}: {difference}")
  assert difference["latent"] <= 1e-5
  assert difference["predictions"] <= 1e-5
  assert difference["loss"] <= 1e-6
  assert not {name: x for name, x in relative.items() if not x <= 1e-4}


@pytest.mark.slow
@pytest.mark.parametrize("norm_pix", [True, False])
def test_twenty_steps(norm_pix: bool):
  theirs, ours = torch_model(3, norm_pix), jax_model(3, norm_pix)
  peak, low, warmup, total, decay = 4e-3, 1e-5, 5, 20, 0.05
  plain = [p for p in trained(theirs).values() if p.ndim == 1]
  decayed = [p for p in trained(theirs).values() if p.ndim > 1]
  optimizer = torch.optim.AdamW(
    [
      {"params": plain, "weight_decay": 0.0},
      {"params": decayed, "weight_decay": decay},
    ],
    betas=(0.9, 0.95),
  )
  config = tiny.config(
    optim={"lr": peak, "min_lr": low, "weight_decay": decay}
  ).optim
  tx = optim.adamw(config)
  schedule = optim.learning_rate(config, total, warmup)
  params = to_jax(trained(theirs))
  state = checkpoints.TrainState.create(
    {"model": params}, {"model": tx.init(params)}
  )

  @jax.jit
  def train_step(state, images, noise):
    def loss_fn(params, batch):
      return ours.apply({"params": params}, *batch).loss

    loss, grads = update.loss_and_grads(
      loss_fn, state.params["model"], (images, noise), 1
    )
    lr = schedule(state.step)
    optimizers = {"model": update.RoleOptimizer(tx)}
    return update.update(state, optimizers, lr, loss, {"model": grads})

  losses, wanted = [], []
  for step in range(total):
    images, noise = sample(step, 3)
    for group in optimizer.param_groups:
      group["lr"] = numpy_reference.learning_rate(
        step, peak=peak, low=low, warmup=warmup, total=total
      )
    optimizer.zero_grad()
    loss = run_torch(theirs, images, noise).loss
    loss.backward()
    optimizer.step()
    wanted.append(loss.item())
    state, metrics = train_step(state, images, noise)
    losses.append(float(metrics["loss"]))
  relative = np.abs(np.array(losses) / np.array(wanted) - 1)
  print(f"{norm_pix=}: loss {wanted[0]:.3f} -> {wanted[-1]:.3f}, largest")
  print(f"relative difference {relative.max():.2e}")
  # Training moved the parameters far enough to make the comparison meaningful.
  assert min(wanted[-5:]) < 0.8 * wanted[0]
  np.testing.assert_allclose(losses, wanted, rtol=1e-4)
