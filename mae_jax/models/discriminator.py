"""Networks that tell photographs from reconstructions.

Without batch statistics, so that an image's score is its own on any devices,
and a gradient penalty means what it says.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

ROLE = "discriminator"  # its parameters in the state
SLOPE = 0.2  # of leaky ReLU below 0


class Discriminator(nn.Module):
  """Scores parts of images: convolutions that halve the size, then one of 1x1.

  As a "PatchGAN" (Isola et al. 2017, arXiv 1611.07004), each score sees only a
  part of the image.

  Attributes:
    width: channels after the first halving; each further one doubles them, to
      at most eight times.
    depth: halvings.
    dtype: of activations; scores are float32.
  """

  width: int
  depth: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """[B, H, W, C] -> scores [B, S], above 0 for what seems real."""
    x = self._halved(images)
    scores = nn.Conv(1, (1, 1), dtype=jnp.float32, name="score")(x)
    return scores.reshape(len(images), -1)

  def score_flops(self, height: int, width: int, channels: int) -> int:
    """Of what comes after the convolutions, for one image."""
    return 2 * height * width * channels

  def _halved(self, x: jax.Array) -> jax.Array:
    for number in range(self.depth):
      x = nn.Conv(
        self.width * min(2**number, 8),
        (4, 4),
        strides=2,
        dtype=self.dtype,
        name=f"conv{number}",
      )(x)
      x = nn.leaky_relu(x, SLOPE)
    return x


class ImageDiscriminator(Discriminator):
  """Scores images as a whole: by a hidden layer on the mean of what it finds.

  So that a score depends on what parts have to do with each other, which the
  mean of scores of parts would not.
  """

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """[B, H, W, C] -> scores [B, 1]."""
    x = self._halved(images).mean(axis=(1, 2))
    x = nn.Dense(x.shape[-1], dtype=self.dtype, name="together")(x)
    x = nn.leaky_relu(x, SLOPE)
    return nn.Dense(1, dtype=jnp.float32, name="score")(x)

  def score_flops(self, height: int, width: int, channels: int) -> int:
    """See `Discriminator`."""
    del height, width
    return 2 * channels * (channels + 1)


# By what is judged.
DISCRIMINATORS: dict[str, type[Discriminator]] = {
  "patch": Discriminator,
  "image": ImageDiscriminator,
}


def forward_flops(
  network: Discriminator, size: tuple[int, int], channels: int
) -> int:
  """Of one image, two a multiply-add."""
  total, (height, width) = 0, size
  for number in range(network.depth):
    height, width = -(-height // 2), -(-width // 2)
    wider = network.width * min(2**number, 8)
    total += 2 * height * width * 16 * channels * wider
    channels = wider
  return total + network.score_flops(height, width, channels)
