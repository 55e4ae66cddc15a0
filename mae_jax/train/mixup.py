"""Mixup, cutmix and random erasing of normalized images, as in timm.

Mixup (Zhang et al. 2018, arXiv 1710.09412) and cutmix (Yun et al. 2019, arXiv
1905.04899) sample one lambda a batch, and mix an example with the one at the
same place of the reversed batch. Random erasing (Zhong et al. 2020, arXiv
1708.04896) fills a box with noise. Everything random is sampled for the whole
global batch, so that it does not depend on the devices.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp
import optax

ERASE_TRIES = 10
ERASE_AREA = (0.02, 1 / 3)  # of the image
ERASE_ASPECT = (0.3, 1 / 0.3)  # height / width, log-uniform


@flax.struct.dataclass
class Mix:
  """The shares in which an example and its partner are mixed.

  Attributes:
    pixels: [H, W] float32, the example's share of each pixel.
    label: scalar, the example's share of the label.
  """

  pixels: jax.Array
  label: jax.Array


def sample_mix(
  key: jax.Array,
  image_size: tuple[int, int],
  *,
  mixup: float,
  cutmix: float,
  switch: float,
  prob: float = 1.0,
) -> Mix:
  """Samples the mix of one batch.

  Args:
    key: key of the step.
    image_size: H and W.
    mixup: alpha of mixup's beta distribution; 0 for no mixup.
    cutmix: alpha of cutmix's beta distribution; 0 for no cutmix.
    switch: probability of cutmix if both are on.
    prob: probability that the batch is mixed.
  """
  kinds, shares, places, whether = jax.random.split(key, 4)
  height, width = image_size
  if not mixup:
    switch = 1.0
  elif not cutmix:
    switch = 0.0
  cut = jax.random.uniform(kinds) < switch
  alpha = jnp.where(cut, cutmix or 1.0, mixup or 1.0)
  share = jax.random.beta(shares, alpha, alpha)
  share = jnp.where(jax.random.uniform(whether) < prob, share, 1.0)
  if not mixup and not cutmix:
    share = jnp.ones(())
  # The box is clipped to the image, and the share follows the clipped box.
  ratio = jnp.sqrt(1 - share)
  y, x = jax.random.uniform(places, (2,))
  rows = _inside(y, ratio, height)
  columns = _inside(x, ratio, width)
  box = rows[:, None] & columns[None, :]
  whole = jnp.full(image_size, share)
  pixels = jnp.where(cut, jnp.where(box, 0.0, 1.0), whole)
  label = jnp.where(cut, 1 - box.mean(dtype=jnp.float32), share)
  return Mix(pixels, label)


def _inside(draw: jax.Array, ratio: jax.Array, size: int) -> jax.Array:
  """Returns [size] bool: the places that a side of the box covers."""
  half = jnp.floor(size * ratio).astype(jnp.int32) // 2
  center = jnp.floor(draw * size).astype(jnp.int32)
  low = jnp.clip(center - half, 0, size)
  high = jnp.clip(center + half, 0, size)
  place = jnp.arange(size)
  return (place >= low) & (place < high)


def mix_images(images: jax.Array, mix: Mix) -> jax.Array:
  """Mixes images [B, H, W, C] with the reversed batch."""
  share = mix.pixels[None, :, :, None]
  return images * share + images[::-1] * (1 - share)


def mix_labels(
  labels: jax.Array, num_classes: int, smoothing: float, mix: Mix
) -> jax.Array:
  """Maps labels [B] to smoothed, mixed targets [B, num_classes]."""
  one_hot = jax.nn.one_hot(labels, num_classes)
  targets = optax.losses.smooth_labels(one_hot, smoothing)
  return targets * mix.label + targets[::-1] * (1 - mix.label)


def random_erasing(key: jax.Array, images: jax.Array, prob: float) -> jax.Array:
  """Fills a box of some images with noise from N(0, 1), pixel by pixel.

  The first of ten boxes that fits counts, as in timm.

  Args:
    key: key of the step.
    images: [B, H, W, C], normalized.
    prob: probability that an image is erased.
  """
  batch, height, width, channels = images.shape
  whether, sizes, places, fill = jax.random.split(key, 4)
  areas, aspects = jax.random.uniform(sizes, (2, batch, ERASE_TRIES))
  low, high = ERASE_AREA
  areas = height * width * (low + (high - low) * areas)
  low, high = map(math.log, ERASE_ASPECT)
  aspects = jnp.exp(low + (high - low) * aspects)
  heights = jnp.round(jnp.sqrt(areas * aspects))
  widths = jnp.round(jnp.sqrt(areas / aspects))
  fits = (heights < height) & (widths < width)
  first = jnp.argmax(fits, axis=1)[:, None]
  box_h = jnp.take_along_axis(heights, first, axis=1)  # [B, 1]
  box_w = jnp.take_along_axis(widths, first, axis=1)
  y, x = jax.random.uniform(places, (2, batch, 1))
  top = jnp.floor(y * (height - box_h + 1))
  left = jnp.floor(x * (width - box_w + 1))
  rows, columns = jnp.arange(height)[None], jnp.arange(width)[None]
  in_rows = (rows >= top) & (rows < top + box_h)  # [B, H]
  in_columns = (columns >= left) & (columns < left + box_w)
  erased = jax.random.uniform(whether, (batch, 1)) < prob
  erased &= fits.any(axis=1, keepdims=True)
  box = (in_rows & erased)[:, :, None] & in_columns[:, None, :]
  noise = jax.random.normal(fill, (batch, height, width, channels))
  return jnp.where(box[..., None], noise, images)
