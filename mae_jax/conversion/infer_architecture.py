"""The dimensions of a network, read off its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from mae_jax.conversion import model_info as facts_lib
from mae_jax.conversion.name_maps import Names
from mae_jax.models import architecture
from mae_jax.utils.errors import ConfigError

_SHOWN = 3  # names in an error

Shapes = Mapping[str, tuple[int, ...]]


def read(shapes: Shapes, names: Names, what: str) -> dict[str, Any]:
  """What tensors tell of their network.

  Args:
    shapes: of the tensors, by the dialect's names.
    names: of the dialect.
    what: the file, for messages.

  Returns:
    Fields of `facts.Facts`. Heads are those of the named size or None; so is
    the image size, of images that are not square.

  Raises:
    ConfigError: if there is no ViT.
  """

  def shape(path: str, dims: int, suffix: str = "") -> tuple[int, ...]:
    theirs = names[path]
    assert isinstance(theirs, str)
    name = theirs.format(layer=0) + suffix
    if name not in shapes:
      found = ", ".join(list(shapes)[:_SHOWN])
      raise ConfigError(
        f"{what} has no tensor {name}, without which it is no ViT of this "
        f"dialect (it has {found or 'none'}, ...): see that it is the right "
        "file, or name another dialect with --from"
      )
    if len(shapes[name]) != dims:
      raise ConfigError(
        f"{what}: {name} has shape {shapes[name]}, which should have {dims} "
        "dimensions: it is no ViT of this dialect"
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
    "kind": facts_lib.ENCODER,
    "width": width,
    "depth": blocks,
    "mlp_dim": mlp_dim,
    "heads": facts_lib.known_heads(width, blocks),
    "patch_size": tuple(patch),
    "channels": channels,
    "image_size": None
    if not side or side * side != tokens - 1
    else tuple(side * each for each in patch),
    "decoder": None,
    "presumed": frozenset({"heads", "decoder_heads", "image_size"}),
  }
  if names["model/decoder/mask_token"] in shapes:
    *_, narrow = shape("model/decoder/mask_token", 3)
    heads = facts_lib.known_decoder_heads(narrow) or 0
    layers, hidden = stack("decoder")
    found["decoder"] = architecture.Dims(narrow, layers, heads, hidden)
    found["kind"] = facts_lib.MAE
  return found


def depth(shapes: Shapes, names: Names, path: str) -> int:
  """The number of blocks that there are tensors of."""
  pattern = re.escape(str(names[path])).replace(r"\{layer\}", r"(\d+)")
  found = (re.match(pattern + r"\.", name) for name in shapes)
  return 1 + max((int(match[1]) for match in found if match), default=-1)
