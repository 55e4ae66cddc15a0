"""Networks with the names of the reference's layout, in plain PyTorch.

Written from a description of the layout (tensor names, order of operations) for
these tests; no code of the reference is used.
"""

from __future__ import annotations

import torch
from torch import nn


class Attention(nn.Module):
  """Self-attention with a fused projection [q; k; v], each (heads, d)."""

  def __init__(self, width: int, heads: int):
    super().__init__()
    self.heads = heads
    self.qkv = nn.Linear(width, 3 * width)
    self.proj = nn.Linear(width, width)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    batch, length, width = x.shape
    head_dim = width // self.heads
    q, k, v = self.qkv(x).chunk(3, dim=-1)
    shape = (batch, length, self.heads, head_dim)
    q, k, v = (y.reshape(shape).permute(0, 2, 1, 3) for y in (q, k, v))
    scores = (q @ k.mT) / head_dim**0.5
    out = scores.softmax(dim=-1) @ v
    return self.proj(out.permute(0, 2, 1, 3).reshape(batch, length, width))


class Mlp(nn.Module):
  """Two layers with an exact GELU between them."""

  def __init__(self, width: int, hidden: int):
    super().__init__()
    self.fc1 = nn.Linear(width, hidden)
    self.fc2 = nn.Linear(hidden, width)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
  """A pre-norm block."""

  def __init__(self, width: int, heads: int, hidden: int, eps: float):
    super().__init__()
    self.norm1 = nn.LayerNorm(width, eps)
    self.attn = Attention(width, heads)
    self.norm2 = nn.LayerNorm(width, eps)
    self.mlp = Mlp(width, hidden)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    x = x + self.attn(self.norm1(x))
    return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
  """A convolution whose stride equals its size."""

  def __init__(self, patch: int, channels: int, width: int):
    super().__init__()
    self.proj = nn.Conv2d(channels, width, patch, patch)

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    return self.proj(images).flatten(2).mT


class Encoder(nn.Module):
  """The layers that all networks share."""

  def __init__(
    self,
    *,
    patch: int = 6,
    channels: int = 3,
    width: int = 48,
    depth: int = 2,
    heads: int = 4,
    hidden: int = 80,
    length: int = 16,
    eps: float = 1e-6,
  ):
    super().__init__()
    self.patch = patch
    self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
    self.pos_embed = nn.Parameter(torch.zeros(1, 1 + length, width))
    self.patch_embed = PatchEmbed(patch, channels, width)
    self.blocks = nn.ModuleList(
      Block(width, heads, hidden, eps) for _ in range(depth)
    )

  def embed(self, images: torch.Tensor) -> torch.Tensor:
    return self.patch_embed(images) + self.pos_embed[:, 1:]

  def run(self, x: torch.Tensor) -> torch.Tensor:
    cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
    x = torch.cat([cls, x], dim=1)
    for block in self.blocks:
      x = block(x)
    return x


class Autoencoder(Encoder):
  """The network of `_full` and `visualize` files."""

  def __init__(
    self,
    *,
    decoder_width: int = 32,
    decoder_depth: int = 2,
    decoder_heads: int = 2,
    decoder_hidden: int = 128,
    **encoder,
  ):
    super().__init__(**encoder)
    width, length = self.cls_token.shape[-1], self.pos_embed.shape[1]
    self.norm = nn.LayerNorm(width, 1e-6)
    self.decoder_embed = nn.Linear(width, decoder_width)
    self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
    self.decoder_pos_embed = nn.Parameter(torch.zeros(1, length, decoder_width))
    self.decoder_blocks = nn.ModuleList(
      Block(decoder_width, decoder_heads, decoder_hidden, 1e-6)
      for _ in range(decoder_depth)
    )
    self.decoder_norm = nn.LayerNorm(decoder_width, 1e-6)
    channels = self.patch_embed.proj.in_channels
    self.decoder_pred = nn.Linear(decoder_width, self.patch**2 * channels)

  def forward(
    self, images: torch.Tensor, noise: torch.Tensor, keep: int
  ) -> torch.Tensor:
    """Predicts patches [B, L, p * p * C]."""
    x = self.embed(images)
    order = noise.argsort(dim=1)
    x = torch.stack([row[o[:keep]] for row, o in zip(x, order, strict=True)])
    x = self.decoder_embed(self.norm(self.run(x)))
    full = self.mask_token.repeat(len(x), noise.shape[1], 1)
    for row, ids, seen in zip(full, order, x[:, 1:], strict=True):
      row[ids[:keep]] = seen
    x = torch.cat([x[:, :1], full], dim=1) + self.decoder_pos_embed
    for block in self.decoder_blocks:
      x = block(x)
    return self.decoder_pred(self.decoder_norm(x))[:, 1:]


class Classifier(Encoder):
  """The network of fine-tuned files, with mean pooling or the class token."""

  def __init__(self, *, pooling: str, classes: int = 5, **encoder):
    super().__init__(**encoder)
    width = self.cls_token.shape[-1]
    self.pooling = pooling
    norm = nn.LayerNorm(width, 1e-6)
    if pooling == "mean":
      self.fc_norm = norm
    else:
      self.norm = norm
    self.head: nn.Module = nn.Linear(width, classes)

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    """Computes logits [B, N]."""
    x = self.run(self.embed(images))
    if self.pooling == "mean":
      return self.head(self.fc_norm(x[:, 1:].mean(dim=1)))
    return self.head(self.norm(x)[:, 0])


class Probe(Classifier):
  """The network of a linear probe's file."""

  def __init__(self, **arguments):
    super().__init__(pooling="cls", **arguments)
    width = self.cls_token.shape[-1]
    norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
    self.head = nn.Sequential(norm, self.head)


class PlainEncoder(Encoder):
  """The network of an encoder-only file."""

  def __init__(self, **arguments):
    super().__init__(**arguments)
    self.norm = nn.LayerNorm(self.cls_token.shape[-1], 1e-6)

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    """Encodes tokens [B, 1 + L, D], the class token first."""
    return self.norm(self.run(self.embed(images)))


MODELS = {
  "encoder": PlainEncoder,
  "mae": Autoencoder,
  "raw": Autoencoder,
  "mean": lambda: Classifier(pooling="mean"),
  "cls": lambda: Classifier(pooling="cls"),
  "probe": Probe,
}


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
  """Makes every parameter and statistic random, with kernels of order one."""
  random = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, value in model.state_dict().items():
      if not value.is_floating_point():
        continue
      draw = torch.randn(value.shape, generator=random)
      if name.endswith("running_var"):
        draw = draw.abs() + 0.3
      elif "norm" in name and name.endswith("weight"):
        draw = 1 + 0.2 * draw
      elif name.endswith("weight"):
        draw = draw / value[0].numel() ** 0.5
      else:
        draw = 0.3 * draw
      value.copy_(draw)
  return model.eval()
