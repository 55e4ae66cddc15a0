"""Infers the dimensions of a network from the shapes of its tensors."""

import math
import re
from collections.abc import Mapping
from typing import Any

from mae_jax.conversion import model_info
from mae_jax.conversion.name_maps import Names
from mae_jax.models import architecture
from mae_jax.utils.errors import ConfigError

_MAX_NAMES = 3  # names in an error

Shapes = Mapping[str, tuple[int, ...]]


def read(shapes: Shapes, names: Names, what: str) -> dict[str, Any]:
  """Infers model info from tensor shapes.

  Args:
    shapes: tensor shapes by the format's names.
    names: the format's tensor names.
    what: the file, for messages.

  Returns:
    Fields of `model_info.ModelInfo`. `heads` is None if no named size has these
    dimensions; `image_size` is None if the grid is not square.
  """

  def shape(path: str, dims: int, suffix: str = "") -> tuple[int, ...]:
    theirs = names[path]
    assert isinstance(theirs, str)
    name = theirs.format(layer=0) + suffix
    if name not in shapes:
      found = ", ".join(list(shapes)[:_MAX_NAMES])
      raise ConfigError(
        f"{what} has no tensor {name}, which every ViT of this format has (it "
        f"has {found or 'none'}, ...): check that it is the right file, or "
        "choose another format with --from (python -m mae_jax convert)"
      )
    if len(shapes[name]) != dims:
      raise ConfigError(
        f"{what}: {name} has shape {shapes[name]} instead of {dims} "
        "dimensions: it is not a ViT of this format"
      )
    return shapes[name]

  def stack(side: str) -> tuple[int, int]:
    mlp = shape(f"model/{side}/stack/blocks/mlp/fc1", 2, ".weight")[0]
    return depth(shapes, names, f"model/{side}/stack/blocks/norm1"), mlp

  *_, width = shape("model/encoder/cls_token", 3)
  blocks, mlp_dim = stack("encoder")
  _, channels, *patch = shape("model/encoder/patch_embed", 4, ".weight")
  _, tokens, _ = shape("model/encoder/pos_embed", 3)
  side = math.isqrt(max(tokens - 1, 0))
  found: dict[str, Any] = {
    "kind": model_info.ENCODER,
    "width": width,
    "depth": blocks,
    "mlp_dim": mlp_dim,
    "heads": model_info.heads_of_named_size(width, blocks),
    "patch_size": tuple(patch),
    "channels": channels,
    "image_size": None
    if not side or side * side != tokens - 1
    else tuple(side * each for each in patch),
    "decoder": None,
    "assumed": frozenset({"heads", "decoder_heads", "image_size"}),
  }
  if has_decoder(shapes, names):
    *_, narrow = shape("model/decoder/mask_token", 3)
    heads = model_info.DECODER_HEADS.get(narrow, 0)
    layers, hidden = stack("decoder")
    found["decoder"] = architecture.Dims(narrow, layers, heads, hidden)
    found["kind"] = model_info.MAE
  return found


def has_decoder(shapes: Shapes, names: Names) -> bool:
  """Checks for a mask token [1, 1, D]; that of DINOv2's encoder is [1, D]."""
  return len(shapes.get(str(names["model/decoder/mask_token"]), ())) == 3


def depth(shapes: Shapes, names: Names, path: str) -> int:
  """Counts the blocks that have tensors."""
  pattern = re.escape(str(names[path])).replace(r"\{layer\}", r"(\d+)")
  found = (re.match(pattern + r"\.", name) for name in shapes)
  return 1 + max((int(match[1]) for match in found if match), default=-1)
