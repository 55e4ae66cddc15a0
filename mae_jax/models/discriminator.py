"""Discriminators: networks that tell photographs from reconstructions.

They have no batch statistics. An image's score then depends on that image
alone, on any devices, and a gradient penalty is well defined.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

ROLE = "discriminator"  # key of its parameters in the train state
SLOPE = 0.2  # leaky ReLU's slope below 0


class Discriminator(nn.Module):
  """A PatchGAN discriminator: strided convolutions, then a 1x1 convolution.

  Each score sees only a part of the image (Isola et al. 2017, arXiv
  1611.07004).

  Attributes:
    width: channels of the first convolution; each further one doubles them, up
      to eight times.
    depth: number of convolutions of stride 2.
    dtype: of activations; scores are float32.
  """

  width: int
  depth: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Scores [B, H, W, C] as [B, S]; above 0 means real."""
    x = self._downsample(images)
    scores = nn.Conv(1, (1, 1), dtype=jnp.float32, name="score")(x)
    return scores.reshape(len(images), -1)

  def score_flops(self, height: int, width: int, channels: int) -> int:
    """Counts flops of the layers after the convolutions, for one image."""
    return 2 * height * width * channels

  def _downsample(self, x: jax.Array) -> jax.Array:
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
  """A discriminator with one score per image.

  A hidden layer sees the mean over positions. This lets the score depend on how
  parts relate, which a mean of scores of parts cannot.
  """

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Scores [B, H, W, C] as [B, 1]; above 0 means real."""
    x = self._downsample(images).mean(axis=(1, 2))
    x = nn.Dense(x.shape[-1], dtype=self.dtype, name="together")(x)
    x = nn.leaky_relu(x, SLOPE)
    return nn.Dense(1, dtype=jnp.float32, name="score")(x)

  def score_flops(self, height: int, width: int, channels: int) -> int:
    """Counts flops of the layers after the convolutions, for one image."""
    del height, width
    return 2 * channels * (channels + 1)


# By the region that a score covers.
DISCRIMINATORS: dict[str, type[Discriminator]] = {
  "patch": Discriminator,
  "image": ImageDiscriminator,
}


def forward_flops(
  network: Discriminator, size: tuple[int, int], channels: int
) -> int:
  """Counts forward flops of one image, two per multiply-add."""
  total, (height, width) = 0, size
  for number in range(network.depth):
    height, width = -(-height // 2), -(-width // 2)
    wider = network.width * min(2**number, 8)
    total += 2 * height * width * 16 * channels * wider
    channels = wider
  return total + network.score_flops(height, width, channels)
