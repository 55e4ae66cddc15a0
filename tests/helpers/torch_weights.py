"""Converts weights of transformers' models to this project's trees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch


class Weights:
  """Tensors by PyTorch name, which record the names that were read."""

  def __init__(self, values: Mapping[str, torch.Tensor]):
    self._values = values
    self.used: set[str] = set()

  def take(self, name: str) -> np.ndarray:
    """Returns a tensor unchanged."""
    self.used.add(name)
    return self._values[name].detach().numpy().copy()

  def dense(self, name: str) -> dict[str, np.ndarray]:
    """Converts a linear layer."""
    return {
      "kernel": self.take(f"{name}.weight").T,
      "bias": self.take(f"{name}.bias"),
    }

  def norm(self, name: str) -> dict[str, np.ndarray]:
    """Converts a LayerNorm."""
    return {
      "scale": self.take(f"{name}.weight"),
      "bias": self.take(f"{name}.bias"),
    }

  def patch_embed(self, name: str) -> dict[str, np.ndarray]:
    """Converts a convolution [D, C, p, q] to a dense layer."""
    kernel = self.take(f"{name}.weight").transpose(2, 3, 1, 0)
    return {
      "kernel": kernel.reshape(-1, kernel.shape[-1]),
      "bias": self.take(f"{name}.bias"),
    }

  def stack(self, name: str, depth: int) -> dict[str, Any]:
    """Stacks the blocks."""
    layers = [self._block(f"{name}.{i}") for i in range(depth)]
    return {"blocks": jax.tree.map(lambda *x: np.stack(x), *layers)}

  def _block(self, name: str) -> dict[str, Any]:
    qkv = [self.dense(f"{name}.attention.{x}_proj") for x in "qkv"]
    return {
      "norm1": self.norm(f"{name}.layernorm_before"),
      "norm2": self.norm(f"{name}.layernorm_after"),
      "attn": {
        "qkv": jax.tree.map(lambda *x: np.concatenate(x, axis=-1), *qkv),
        "proj": self.dense(f"{name}.attention.o_proj"),
      },
      "mlp": {
        "fc1": self.dense(f"{name}.mlp.fc1"),
        "fc2": self.dense(f"{name}.mlp.fc2"),
      },
    }


def randomize(model: torch.nn.Module, seed: int) -> None:
  """Makes every parameter random: kernels of order one, no bias zero."""
  random = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, p in model.named_parameters():
      draw = torch.randn(p.shape, generator=random)
      if "norm" in name:
        p.copy_(0.2 * draw + (1.0 if name.endswith("weight") else 0.0))
      elif name.endswith("token") or name.endswith("position_embeddings"):
        p.copy_(0.5 * draw)
      elif name.endswith("bias"):
        p.copy_(0.2 * draw)
      elif name.endswith("weight"):
        p.copy_(draw / np.sqrt(p[0].numel()))
