"""What a converted network says of images, here and in PyTorch."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
import torch

from mae_jax.evals import restored
from mae_jax.models import build, mae
from tests.dialects import networks
from tests.train import runs

BATCH = 3


def images(seed: int = 0) -> tuple[np.ndarray, torch.Tensor]:
  """Normalised images, [B, H, W, C] here and [B, C, H, W] there."""
  size = (BATCH, networks.SIZE, networks.SIZE, 3)
  x = np.random.default_rng(seed).normal(size=size).astype(np.float32)
  return x, torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def noise(seed: int = 1) -> np.ndarray:
  """[B, L]."""
  length = (networks.SIZE // networks.PATCH) ** 2
  draw = np.random.default_rng(seed).uniform(size=(BATCH, length))
  return draw.astype(np.float32)


def tokens(path: pathlib.Path, x: np.ndarray) -> np.ndarray:
  """[B, 1 + L, D] of the encoder, the class token first."""
  found = restored.load(path, runs.devices_mesh())
  out: mae.Tokens = jax.jit(found.encoder.apply)(
    {"params": found.encoder_params}, x
  )
  return np.concatenate([out.cls[:, None], out.patches], axis=1)


def logits(path: pathlib.Path, x: np.ndarray) -> np.ndarray:
  """[B, N] of normalised images: the classifier's own `logits` take uint8."""
  from mae_jax.models import batch_norm, classifiers

  found = restored.load_classifier(path, runs.devices_mesh())
  network = found.classifier
  if isinstance(network, classifiers.Probe):
    out = network.encoder.apply({"params": found.encoder_params}, x)
    pooled = mae.POOLINGS[network.config.classify.pooling](out)
    stats = batch_norm.Statistics(**found.params["stats"])
    normalized = batch_norm.normalize(pooled, stats)
    return np.asarray(network.linear(found.params["head"], normalized))
  assert network is not None
  params = classifiers.trained(found.params)
  return np.asarray(jax.jit(network.model.apply)({"params": params}, x))


def predictions(path: pathlib.Path, x: np.ndarray, draw: np.ndarray):
  """Predicted patches of a checkpoint of ours, and how many were kept."""
  from mae_jax import dialects

  params, run = dialects.load_any(path, runs.devices_mesh())
  model = build.masked_autoencoder(run.config)
  out = jax.jit(model.apply)({"params": params["model"]}, x, draw)
  return np.asarray(out.pred), int((np.asarray(out.mask[0]) == 0).sum())
