"""The ViT classifier: the encoder with a head."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.models import mae, transformer
from mae_jax.utils.errors import ConfigError

# Keys of a classifier's parameters, beside "encoder".
FC_NORM, HEAD = "fc_norm", "head"
POOLINGS = {"mean": "of the patch tokens", "cls": "the class token"}


def num_frozen_blocks(trained: str, depth: int) -> int:
  """Returns the number of leading blocks that are frozen.

  Args:
    trained: "all"; "head", the head and the norm before it; "mlp", also the
      last block's MLP; "4 blocks", also the last 4 blocks.
    depth: number of blocks.

  Raises:
    ConfigError: if `trained` has another form.
  """
  known = {"all": 0, "head": depth, "mlp": depth - 1}
  if trained in known:
    return known[trained]
  match = re.fullmatch(r"(\d{1,4}) ?blocks?", trained)
  if not match or not 1 <= int(match[1]) <= depth:
    raise ConfigError(
      f"classify.trainable={trained!r} is not known: use all, head, mlp, or a "
      f"number of last blocks from '1 blocks' to '{depth} blocks'"
    )
  return depth - int(match[1])


def trainable_mask(params: Any, trained: str) -> Any:
  """Marks the parameters of a `VisionTransformer` that are trained.

  Args:
    params: its parameters or their ShapeDtypeStructs.
    trained: as in `num_frozen_blocks`.

  Returns:
    For each parameter, a bool array that broadcasts to it.
  """
  depth = jax.tree.leaves(params["encoder"]["stack"])[0].shape[0]
  first = num_frozen_blocks(trained, depth)

  def mark(path: Any, leaf: Any) -> np.ndarray:
    part = [key.key for key in path]
    if part[:2] == ["encoder", "stack"]:
      is_trained = np.arange(depth) >= first
      if trained == "mlp" and part[3] not in ("norm2", "mlp"):
        is_trained[:] = False
      return is_trained.reshape(-1, *[1] * (len(leaf.shape) - 1))
    is_embedding = part[0] == "encoder" and part[1] != "norm"
    return np.array(trained == "all" or not is_embedding)

  return jax.tree_util.tree_map_with_path(mark, params)


class VisionTransformer(nn.Module):
  """A ViT classifier with the reference's names and defaults.

  Pooling "mean" averages the patch tokens and applies "fc_norm"; "cls" takes
  the class token after the encoder's final norm. The encoder's `final_norm` is
  therefore set for "cls" only.

  Attributes:
    encoder: the `mae.Encoder`.
    num_classes: number of classes.
    pooling: "mean" or "cls".
    head_std: standard deviation of the head's initial kernel.
  """

  encoder: mae.Encoder
  num_classes: int
  pooling: str = "mean"
  head_std: float = 2e-5

  @nn.compact
  def __call__(
    self,
    images: jax.Array,
    drop_noise: jax.Array | None = None,
    drop_rate: float = 0.0,
  ) -> jax.Array:
    """Computes logits.

    Args:
      images: [B, H, W, C], normalized.
      drop_noise: [B, depth, 2] uniform noise for stochastic depth; None for
        none, as in evaluation.
      drop_rate: drop probability of the last block.

    Returns:
      [B, num_classes] float32 logits.
    """
    scale = None
    if drop_noise is not None and drop_rate:
      scale = transformer.drop_path(drop_noise, drop_rate)
    tokens = self.encoder(images, residual_scale=scale)
    if self.pooling == "mean":
      norm = transformer.layer_norm(FC_NORM, self.encoder.config.norm_eps)
      x = norm(tokens.patches.mean(axis=1))
    else:
      x = tokens.cls
    return head(self.num_classes, self.head_std)(x)


def head(num_classes: int, std: float) -> nn.Dense:
  """Builds the linear layer to float32 logits.

  The reference truncates its normal at -2 and 2, more than a hundred standard
  deviations away, which changes nothing.
  """
  return nn.Dense(
    num_classes,
    dtype=jnp.float32,
    kernel_init=nn.initializers.normal(std),
    name=HEAD,
  )
