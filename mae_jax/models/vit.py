"""The encoder with a head: a classifier, and what a linear probe looks at."""

from __future__ import annotations

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.models import mae, transformer
from mae_jax.utils.errors import ConfigError

# Parts of a classifier's parameters, beside those of its encoder.
FC_NORM, HEAD = "fc_norm", "head"
POOLINGS = {"mean": "of the patch tokens", "cls": "the class token"}


def num_frozen_blocks(trained: str, depth: int) -> int:
  """How many blocks stay as they are.

  Args:
    trained: "all"; "head", with the norm in front of it; "mlp", and that of
      the last block; "4 blocks", and so many last blocks.
    depth: number of blocks.

  Raises:
    ConfigError: if it is none of them.
  """
  known = {"all": 0, "head": depth, "mlp": depth - 1}
  if trained in known:
    return known[trained]
  match = re.fullmatch(r"(\d{1,4}) ?blocks?", trained)
  if not match or not 1 <= int(match[1]) <= depth:
    raise ConfigError(
      f"classify.trainable={trained!r} is not known: use all, head, mlp, or "
      f"the number of last blocks, '1 blocks' to '{depth} blocks'"
    )
  return depth - int(match[1])


def trainable_mask(params: Any, trained: str) -> Any:
  """Which parameters of a `VisionTransformer` change.

  Args:
    params: its tree; ShapeDtypeStructs will do.
    trained: see `first_trained`.

  Returns:
    A bool array for each parameter, that broadcasts to it.
  """
  depth = jax.tree.leaves(params["encoder"]["stack"])[0].shape[0]
  first = num_frozen_blocks(trained, depth)

  def one(path: Any, leaf: Any) -> np.ndarray:
    part = [key.key for key in path]
    if part[:2] == ["encoder", "stack"]:
      changes = np.arange(depth) >= first
      if trained == "mlp" and part[3] not in ("norm2", "mlp"):
        changes[:] = False
      return changes.reshape(-1, *[1] * (len(leaf.shape) - 1))
    embeds = part[0] == "encoder" and part[1] != "norm"
    return np.array(trained == "all" or not embeds)

  return jax.tree_util.tree_map_with_path(one, params)


class VisionTransformer(nn.Module):
  """A ViT classifier, with names and defaults of the reference.

  With pooling "mean" the patch tokens, not normalized, are averaged and pass
  "fc_norm"; with "cls" the class token has passed the encoder's final norm. So
  the encoder's `final_norm` is set for "cls" alone.

  Attributes:
    encoder: see `mae.Encoder`.
    num_classes: of the head.
    pooling: "mean" or "cls".
    head_std: of the normal that the head's kernel begins with.
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
    """Scores the classes.

    Args:
      images: [B, H, W, C], normalized.
      drop_noise: [B, depth, 2] uniform draws for stochastic depth; None for
        none, as in evaluation.
      drop_rate: of the last block.

    Returns:
      [B, num_classes] float32 logits.
    """
    kept = None
    if drop_noise is not None and drop_rate:
      kept = transformer.drop_path(drop_noise, drop_rate)
    tokens = self.encoder(images, kept=kept)
    if self.pooling == "mean":
      norm = transformer.layer_norm(FC_NORM, self.encoder.norm_eps)
      x = norm(tokens.patches.mean(axis=1))
    else:
      x = tokens.cls
    return head(self.num_classes, self.head_std)(x)


def head(num_classes: int, std: float) -> nn.Dense:
  """The linear layer to the logits, in float32.

  The reference cuts its normal off at -2 and 2: that is a hundred deviations
  and more.
  """
  return nn.Dense(
    num_classes,
    dtype=jnp.float32,
    kernel_init=nn.initializers.normal(std),
    name=HEAD,
  )
