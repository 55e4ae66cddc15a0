"""Outputs of converted networks, in JAX and in PyTorch."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
import torch

from mae_jax.evals import load_model
from mae_jax.models import factory, mae
from tests.helpers import runs, sample_checkpoints

BATCH = 3


def images(seed: int = 0) -> tuple[np.ndarray, torch.Tensor]:
  """Samples normalized images, channels last for JAX, first for PyTorch."""
  size = (BATCH, sample_checkpoints.SIZE, sample_checkpoints.SIZE, 3)
  x = np.random.default_rng(seed).normal(size=size).astype(np.float32)
  return x, torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def noise(seed: int = 1) -> np.ndarray:
  """Samples mask noise [B, L]."""
  length = (sample_checkpoints.SIZE // sample_checkpoints.PATCH) ** 2
  draw = np.random.default_rng(seed).uniform(size=(BATCH, length))
  return draw.astype(np.float32)


def tokens(path: pathlib.Path, x: np.ndarray) -> np.ndarray:
  """Computes the encoder's tokens [B, 1 + L, D], the class token first."""
  found = load_model.load(path, runs.devices_mesh())
  out: mae.Tokens = jax.jit(found.encoder.apply)(
    {"params": found.encoder_params}, x
  )
  return np.concatenate([out.cls[:, None], out.patches], axis=1)


def logits(path: pathlib.Path, x: np.ndarray) -> np.ndarray:
  """Computes logits [B, N] of normalized images; `logits` here takes uint8."""
  from mae_jax.models import batch_norm, classifiers

  found = load_model.load(path, runs.devices_mesh(), head=True)
  network = found.classifier
  if isinstance(network, classifiers.Probe):
    out = network.encoder.apply({"params": found.encoder_params}, x)
    pooled = mae.POOLINGS[network.config.classify.pooling](out)
    stats = batch_norm.Statistics(**found.params["stats"])
    normalized = batch_norm.normalize(pooled, stats)
    return np.asarray(network.linear(found.params["head"], normalized))
  assert network is not None
  params = classifiers.inference_params(found.params)
  return np.asarray(jax.jit(network.model.apply)({"params": params}, x))


def predictions(path: pathlib.Path, x: np.ndarray, draw: np.ndarray):
  """Predicts patches with a checkpoint; returns the number of kept ones too."""
  from mae_jax import conversion

  params, run = conversion.load_any(path, runs.devices_mesh())
  model = factory.masked_autoencoder(run.config)
  out = jax.jit(model.apply)({"params": params["model"]}, x, draw)
  return np.asarray(out.pred), int((np.asarray(out.mask[0]) == 0).sum())
