"""Named model sizes, such as "L/16", and their dimensions."""

import dataclasses
import re
from typing import Any

from mae_jax.config import lookup
from mae_jax.utils.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Dims:
  """The dimensions of a stack of transformer blocks.

  Attributes:
    width: D, channels of a token.
    depth: number of blocks.
    heads: number of attention heads, a divisor of the width.
    mlp_dim: hidden width of the MLP.
  """

  width: int
  depth: int
  heads: int
  mlp_dim: int


VARIANTS = {
  "Ti": Dims(192, 12, 3, 768),
  "S": Dims(384, 12, 6, 1536),
  "B": Dims(768, 12, 12, 3072),
  "L": Dims(1024, 24, 16, 4096),
  "H": Dims(1280, 32, 16, 5120),
  # Zhai et al. 2021 (arXiv 2106.04560), table 2.
  "g": Dims(1408, 40, 16, 6144),
  # ViT-2B of Singh et al. 2023 (arXiv 2303.13496), table 1.
  "2B": Dims(2560, 24, 32, 10240),
}


def parse(variant: str) -> tuple[Dims, int]:
  """Parses a name such as "L/16" or "g/14" into dimensions and patch size.

  Raises:
    ConfigError: if the name has another form or the size is unknown.
  """
  match = re.fullmatch(r"(\w+)/([1-9]\d*)", variant)
  if not match:
    raise ConfigError(
      f"model.variant={variant!r} is not a size and a patch size: write for "
      f"instance 'L/16'; sizes are {', '.join(VARIANTS)}"
    )
  dims = lookup(VARIANTS, match[1], "model.variant")
  return dims, int(match[2])


DIMS = tuple(field.name for field in dataclasses.fields(Dims))
# Settings of an encoder that define the network. Others say how it is computed.
FIELDS = (*DIMS, "patch_size", "norm_eps", "activation")


def diff(one: Any, other: Any) -> dict[str, tuple[Any, Any]]:
  """Compares two encoders.

  Returns:
    For each of FIELDS in which they differ, both values.
  """
  found = [
    dataclasses.asdict(each.config) | {"patch_size": each.patch_size}
    for each in (one, other)
  ]
  pairs = {name: tuple(each[name] for each in found) for name in FIELDS}
  return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
